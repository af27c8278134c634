"""How many searches run side by side (`lanes`), and on which devices (`devices`)."""

"""Parallel execution of a search: how many lanes run side by side (`lanes`), and on which devices (`devices`)."""

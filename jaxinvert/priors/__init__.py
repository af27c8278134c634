"""What the attacker knows of images before it sees an update: regularizers, parametrizations, learned generators."""

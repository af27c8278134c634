"""The attacker's prior knowledge about images: regularizers, parametrizations, learned generators."""

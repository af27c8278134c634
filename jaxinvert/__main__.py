"""`python -m jaxinvert` is the `jaxinvert` command."""

from jaxinvert.cli import run

run()

"""Runs the `jaxinvert` command as `python -m jaxinvert`."""

from jaxinvert.cli import run

run()

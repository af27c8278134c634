"""The commands: `invert`, `audit`, `rank`, `records`, `tokens`, `sweep`, `report`, `list`, `data prepare`."""

from jaxinvert.cli.invert import command_line, invert_and_write
from jaxinvert.cli.main import main, run

__all__ = ["command_line", "invert_and_write", "main", "run"]

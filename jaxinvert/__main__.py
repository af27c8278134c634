"""`python -m jaxinvert` is the `jaxinvert` command."""

import sys

from jaxinvert.cli import main

sys.exit(main())

"""Published tables and figures, and benchmarks: one runnable file each, `python -m experiments.NAME --help`."""

"""Limits that several readers share."""

MAX_TENSORS = 20_000
"""A file with more tensors is rejected while they are listed."""
MAX_HEADER_BYTES = 4 << 20
"""A longer table of contents is rejected before it is read."""
MAX_CLASSES = 100_000
"""A file that claims more classes is rejected: every class costs a row of the network's last layer."""

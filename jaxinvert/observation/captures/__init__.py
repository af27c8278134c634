"""Readers for untrusted files: captured updates, their parameters, and images to compare reconstructions with.

Nothing is unpickled and no code runs. Every size is taken from a header and checked before memory is allocated. Any
fault is one `ValueError` that names the file, the tensor, its actual and its expected form. `open_round` lists the
files of a captured round, `load_for_model` and `as_update` turn a file into an update; `load_batch` and `load_images`
read the images that reconstructions are compared with. All results are finite arrays of known shape.
"""

from jaxinvert.observation.captures.images import load_batch, load_images, load_labels, num_labels
from jaxinvert.observation.captures.model_files import load_for_model
from jaxinvert.observation.captures.rounds import Round, open_round, without_update
from jaxinvert.observation.captures.updates import KINDS, Kind, as_update, sent_statistics
from jaxinvert.readers.trees import load_tree

__all__ = [
    "KINDS",
    "Kind",
    "Round",
    "as_update",
    "load_batch",
    "load_for_model",
    "load_images",
    "load_labels",
    "load_tree",
    "num_labels",
    "open_round",
    "sent_statistics",
    "without_update",
]

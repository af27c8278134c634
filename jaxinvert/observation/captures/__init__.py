"""The door for files from outside: captured updates, the parameters they belong to, and images to compare with.

Whoever captured them may not be trusted: nothing is unpickled and no code runs, every size is taken from a header and
checked before memory is asked for, and whatever is wrong is one `ValueError` that names the file, the tensor, what it
is and what it should be. `load_tree` and `as_update` make an update of a file; `load_batch` and `load_images` read
what an owner compares reconstructions with. The rest of jaxinvert then sees only finite arrays of known shape.
"""

from jaxinvert.observation.captures.images import load_batch, load_images
from jaxinvert.observation.captures.trees import load_tree
from jaxinvert.observation.captures.updates import KINDS, Kind, as_update

__all__ = ["KINDS", "Kind", "as_update", "load_batch", "load_images", "load_tree"]

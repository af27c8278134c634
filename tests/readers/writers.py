"""A tree in each of the three formats, as federated frameworks write it."""

import io

import numpy as np
from flax import serialization, traverse_util
from safetensors import numpy as safetensors_numpy


def safetensors_bytes(tree):
    return safetensors_numpy.save({name: np.array(leaf, order="C") for name, leaf in flat(tree).items()})


def npz_bytes(tree, *, save=np.savez):
    file = io.BytesIO()
    save(file, **flat(tree))
    return file.getvalue()


def compressed_npz_bytes(tree):
    return npz_bytes(tree, save=np.savez_compressed)


def msgpack_bytes(tree):
    return serialization.to_bytes(tree)


def flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


WRITERS = {
    "safetensors": safetensors_bytes,
    "npz": npz_bytes,
    "compressed-npz": compressed_npz_bytes,
    "msgpack": msgpack_bytes,
}

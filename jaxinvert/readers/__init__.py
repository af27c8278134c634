"""Readers of untrusted files, one per format; each is bounded in memory and time, and runs nothing that a file names.

- `json_files`, `yaml_files`: limit size, depth and number of values.
- `tensor_files`: lists the tensors of a file from its headers, for `safetensors_files`, `npz_files`, `msgpack_files`.
- `trees`: reads them into a tree of known shapes.

Every fault is one `ValueError` that names the file. This module imports nothing, so that JSON and NumPy files are
read without JAX.
"""

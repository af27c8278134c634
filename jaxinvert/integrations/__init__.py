"""Recorders that write captured rounds from inside a federated framework; see `jaxinvert.manifest` for the format.

Nothing is imported until it is used, and `capture` needs NumPy and safetensors only, no JAX: it runs on federated
servers and clients. `flower` and `nvflare` need their framework:

    pip install 'jaxinvert[flower]'        pip install 'jaxinvert[nvflare]'
"""

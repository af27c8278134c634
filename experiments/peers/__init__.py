"""Parts of `benchmark_peers`: one attack here and in PyTorch, each in a process of its own, and the load beside."""

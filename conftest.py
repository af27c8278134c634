"""Settings of every test and doctest: strict JAX, no pictures on a screen, programs that compile fast and only once.

Compilation is most of what the tests wait for: workers and the processes that tests start share compiled programs on
disk, and programs are hardly optimized. Tracing makes many objects that stay, so garbage is rarely looked for.
"""

import gc
import importlib.metadata
import importlib.util
import os
import pathlib

os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parent / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later ones do not start with a flag that is gone
    flags = ("--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1")
    os.environ.setdefault("XLA_FLAGS", " ".join(flags))
os.environ.setdefault("MPLBACKEND", "Agg")

import jax

collect_ignore_glob = [  # their doctests need their framework
    f"jaxinvert/integrations/{name}.py"
    for name, module in (("flower*", "flwr"), ("nvflare", "nvflare"))
    if importlib.util.find_spec(module) is None
]
jax.config.update("jax_numpy_rank_promotion", "raise")
gc.set_threshold(100_000, 50, 100)

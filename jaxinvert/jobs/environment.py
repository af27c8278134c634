"""Facts about the environment of a job: versions and device."""

import functools
import os
import platform
from importlib import metadata
from pathlib import Path

import jax


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and the libraries that determine a result."""
    return {
        **{name: metadata.version(name) for name in ("jax", "flax", "optax", "numpy")},
        "jaxinvert": _own_version(),
        "python": platform.python_version(),
    }


def device_name() -> str:
    """The device in words; for CPUs, the processor's name and the number of cores available to this process."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{device.device_kind} ({jax.default_backend()})"
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        processor = names[0] if names else processor
    return (
        f"{processor}, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"
    )


def _own_version() -> str:
    try:
        return metadata.version("jaxinvert")
    except metadata.PackageNotFoundError:  # run from a source tree
        return f"source at {Path(__file__).parents[1].name}"

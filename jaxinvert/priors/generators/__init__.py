"""Image generators, trained before the attack or on the updates themselves.

`pyramid` is trained by maximum likelihood and is the better prior for small images; `convolutional` is DCGAN's
network and `style` a small StyleGAN2, both trained against a discriminator. A `Prior` is a generator with parameters,
read from a file by `load_prior`.
"""

from jaxinvert.priors.generators.convolutional import convolutional
from jaxinvert.priors.generators.generator import Generator, Latents, Prior, check_fits, draw_latents
from jaxinvert.priors.generators.pyramid import Pyramid, pyramid
from jaxinvert.priors.generators.registry import DEFAULT, REGISTRY, load_prior, save_prior
from jaxinvert.priors.generators.style import modulated_convolution, style

__all__ = [
    "DEFAULT",
    "REGISTRY",
    "Generator",
    "Latents",
    "Prior",
    "Pyramid",
    "check_fits",
    "convolutional",
    "draw_latents",
    "load_prior",
    "modulated_convolution",
    "pyramid",
    "save_prior",
    "style",
]

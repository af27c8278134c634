"""Convolution and max-pooling that are fast under second derivatives and under vmap over restarts."""

from jaxinvert.nn.convolution import conv_general_dilated
from jaxinvert.nn.lowerings import compile_fast
from jaxinvert.nn.pooling import max_pool
from jaxinvert.nn.precision import Precision, at_full_precision, at_precision
from jaxinvert.nn.rewrite import fast_convolutions

__all__ = [
    "Precision",
    "at_full_precision",
    "at_precision",
    "compile_fast",
    "conv_general_dilated",
    "fast_convolutions",
    "max_pool",
]

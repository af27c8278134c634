"""Convolution and max-pooling that are fast under second derivatives and under vmap over restarts."""

from jaxinvert.nn.convolution import conv_general_dilated
from jaxinvert.nn.lowerings import compile_fast
from jaxinvert.nn.pooling import max_pool
from jaxinvert.nn.rewrite import fast_convolutions

__all__ = ["compile_fast", "conv_general_dilated", "fast_convolutions", "max_pool"]

from jax.lax import conv_general_dilated as conv_general_dilated

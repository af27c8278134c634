from flax.linen import max_pool as max_pool

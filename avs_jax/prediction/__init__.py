"""From clips to masks, in memory: what `predict` does to a film and `avs_jax.load` to arrays."""

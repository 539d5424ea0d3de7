"""What `avs_jax.benchmark` measures, and how: FLOPs, rounds of times, parts of a model, growth with
the input, train steps."""

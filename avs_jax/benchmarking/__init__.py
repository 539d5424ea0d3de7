"""What `avs_jax.benchmark` measures, and how: FLOPs, rounds of times, parts of a model, growth with
the input, train steps, plans for devices that are not here, growth with the number of devices."""

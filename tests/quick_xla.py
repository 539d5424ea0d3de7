"""XLA's flags for tests: what they compile runs once, on little, so compiling is what costs."""

import importlib.metadata

# Half of what is left without optimisation goes into emitters of fused loops; jax 0.12 has no
# other way to make them, and ends at a flag that it does not know.
_OLD = tuple(map(int, importlib.metadata.version("jax").split(".")[:2])) < (0, 11)
FLAGS = "--xla_backend_optimization_level=0" + " --xla_cpu_use_fusion_emitters=false" * _OLD


def flags(devices: int) -> str:
    """XLA_FLAGS of a program with so many CPU devices."""
    return f"--xla_force_host_platform_device_count={devices} {FLAGS}"

"""One training step for the program that trains, the one that times and the one that plans."""

import jax
import numpy as np

from avs_jax import devices
from avs_jax.training import state
from avs_jax.training.program import plan_program
from tests.benchmarking.test_plan import make_config

FROZEN = {"optimizer.freeze": ("audio_backbone/.*",)}


def test_a_program_is_planned_without_computing_anything():
    config = make_config(**FROZEN | {"optimizer.warmup_steps": 0})
    program = plan_program(config, devices.make_mesh(), steps=4)
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(program.state_shapes))
    assert program.frozen.modules
    np.testing.assert_allclose(program.schedule(4), 0, atol=1e-9)


def test_a_compiled_step_counts_on_and_leaves_what_is_frozen():
    config, mesh = make_config(**FROZEN), devices.make_mesh()
    program = plan_program(config, mesh, steps=4)
    clips = devices.batch_sharding(mesh)
    shapes = state.batch_shapes(config.batch_size, config.data.seconds, 32, clips)
    step = program.make_step(32)
    totals = program.make_empty_totals(step, shapes)()
    first = program.create_state()
    before = jax.device_get(first.params)
    run = program.compile_step(step, first, totals, shapes)
    ones = {name: jax.numpy.ones(x.shape, x.dtype) for name, x in shapes.items()}
    new, totals, _ = run(first, totals, jax.device_put(ones, clips))
    assert int(new.step) == 1
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), before, jax.device_get(new.params))
    assert not any(jax.tree.leaves(changed["audio_backbone"]))
    assert any(jax.tree.leaves({k: v for k, v in changed.items() if k != "audio_backbone"}))

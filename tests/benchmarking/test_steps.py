"""Bytes of collectives in a compiled program's text."""

from avs_jax.benchmarking.steps import count_collective_bytes

TEXT = """
  %a = f32[4,8]{1,0} all-reduce(%x), channel_id=1, replica_groups={{0,1}}
  %b = (f32[10]{0}, bf16[2,3]{1,0}) all-reduce(%y, %z), channel_id=2
  %c = f32[100]{0} add(%a, %a)
  %d = f32[] all-reduce-start(%w)
  %e = f32[] all-reduce-done(%d)
  ROOT %f = f32[16]{0} all-gather(%v), dimensions={0}
"""


def test_collectives_of_all_kinds_and_types_are_counted_once():
    assert count_collective_bytes(TEXT) == 4 * 32 + 4 * 10 + 2 * 6 + 4 + 4 * 16


def test_a_program_of_one_device_has_none():
    assert count_collective_bytes("  %c = f32[100]{0} add(%a, %a)") == 0

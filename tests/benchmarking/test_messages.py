"""Collectives in a compiled program's text."""

from avs_jax.benchmarking.messages import count_messages

TEXT = """
  %a = f32[4,8]{1,0} all-reduce(%x), channel_id=1, replica_groups={{0,1}}
  %b = (f32[10]{0}, bf16[2,3]{1,0}) all-reduce(%y, %z), channel_id=2
  %c = f32[100]{0} add(%a, %a)
  %d = f32[] all-reduce-start(%w)
  %e = f32[] all-reduce-done(%d)
  ROOT %f = f32[16]{0} all-gather(%v), dimensions={0}
"""


def test_collectives_of_all_kinds_and_types_are_counted_once():
    found = count_messages(TEXT)
    assert found == {"all-reduce": (3, 4 * 32 + 4 * 10 + 2 * 6 + 4), "all-gather": (1, 4 * 16)}


def test_a_program_of_one_device_has_none():
    assert count_messages("  %c = f32[100]{0} add(%a, %a)") == {}


def test_messages_are_counted_with_the_bytes_of_their_results():
    program = """
      %a = f32[8,4]{1,0} all-reduce(%x), replica_groups={}
      %b = (f32[10]{0}, bf16[6,2]{1,0}) all-reduce(%y, %z), to_apply=%add
      %c = (f32[2,3]{1,0}, f32[16,3]{1,0}) all-gather-start(%w), dimensions={0}
      %d = f32[16,3]{1,0} all-gather-done(%c)
      ROOT %e = s32[] add(%p, %q)
    """
    assert count_messages(program) == {
        "all-reduce": (2, 8 * 4 * 4 + 10 * 4 + 12 * 2),
        "all-gather": (1, 16 * 3 * 4),
    }


def test_what_a_tpu_sends_in_pieces_counts_once_and_a_scattered_sum_as_that():
    program = """
%async_collective_fusion.1 (p: bf16[8,4]) -> bf16[32,4] {
  %g = bf16[32,4]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, dimensions={0}
}

%async_collective_fusion.2 (p: bf16[8,4]) -> bf16[32,4] {
  %h = bf16[32,4]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, dimensions={0}
}

%all-reduce-scatter.3 (p: bf16[32,4]) -> bf16[8,4] {
  %s = bf16[32,4]{1,0:T(8,128)(2,1)} all-reduce(%p), channel_id=8, to_apply=%add
}

ENTRY %main (p: bf16[8,4]) -> f32[] {
  %q = f32[]{:T(128)} all-reduce(%o), channel_id=9, to_apply=%add
  ROOT %r = f32[]{:T(128)} all-reduce(%q), channel_id=9, to_apply=%add
}
"""
    assert count_messages(program) == {
        "all-gather": (1, 32 * 4 * 2),
        "reduce-scatter": (1, 32 * 4 * 2),
        "all-reduce": (2, 8),  # of one channel, and yet two
    }

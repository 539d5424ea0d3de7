"""What a compiled program sends between devices, read off its text."""

import math
import re

_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_WIDTHS = {"f64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "u8": 1, "s8": 1, "pred": 1}
# What TPUs' compiler calls the fusion of a sum of which each device keeps its own part.
_SCATTERED = "all-reduce-scatter"


def count_messages(program: str) -> dict[str, tuple[int, int]]:
    """Of a compiled program's text: {kind of collective: (how many, bytes of their results)}.

    Those inside a loop count once, and so do those that TPUs' compiler cuts into pieces, to run
    while others compute: they share a channel. Of a reduce-scatter that is a fusion there it is the
    bytes that are summed.
    """
    found: dict[str, list[int]] = {}
    channels, computation = set(), ""
    for line in program.splitlines():
        if begins := re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line):
            computation = begins[1]
        message = re.search(rf"= (.*?) ({'|'.join(_KINDS)})(?:-start)?\(", line)
        if not message:
            continue
        result, kind = message.groups()
        # Elsewhere channels tell nothing: all messages of a program of `jax.pmap` share one.
        channel = re.search(r"channel_id=\d+", line) if "fus" in computation else None
        if channel:
            if (kind, channel[0]) in channels:
                continue
            channels.add((kind, channel[0]))
        # Of a tuple (input, output), which asynchronous gathers give, the larger is the result.
        sizes = [
            _WIDTHS.get(kind_of_number, 4) * math.prod(int(x) for x in shape.split(",") if x)
            for kind_of_number, shape in re.findall(r"([a-z]\w*)\[([\d,]*)\]", result)
        ]
        size = sum(sizes) if kind == "all-reduce" else max(sizes, default=0)
        kind = "reduce-scatter" if computation.startswith(_SCATTERED) else kind
        entry = found.setdefault(kind, [0, 0])
        entry[0] += 1
        entry[1] += size
    return {kind: (count, size) for kind, (count, size) in found.items()}

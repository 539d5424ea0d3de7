"""What a compiled program sends between devices, read off its text."""

import math
import re

_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_WIDTHS = {"f64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "u8": 1, "s8": 1, "pred": 1}


def count_messages(program: str) -> dict[str, tuple[int, int]]:
    """Of a compiled program's text: {kind of collective: (how many, bytes of their results)}.

    Those inside a loop count once.
    """
    found: dict[str, list[int]] = {}
    for result, kind in re.findall(rf"= (.*?) ({'|'.join(_KINDS)})(?:-start)?\(", program):
        entry = found.setdefault(kind, [0, 0])
        entry[0] += 1
        # Of a tuple (input, output), which asynchronous gathers give, the larger is the result.
        sizes = [
            _WIDTHS.get(kind_of_number, 4) * math.prod(int(x) for x in shape.split(",") if x)
            for kind_of_number, shape in re.findall(r"([a-z]\w*)\[([\d,]*)\]", result)
        ]
        entry[1] += max(sizes, default=0) if kind != "all-reduce" else sum(sizes)
    return {kind: (count, size) for kind, (count, size) in found.items()}

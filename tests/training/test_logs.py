"""Logs: lines that survive a kill, and are not written twice."""

import json

from tensorboardX.proto.event_pb2 import Event

from avs_jax.training.logs import Logs


def read(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_scalars_become_json_lines_and_tensorboard(tmp_path):
    logs = Logs(tmp_path)
    logs.write(3, {"train/loss": 0.5})
    logs.close()
    (line,) = read(tmp_path)
    assert line["step"] == 3
    assert line["train/loss"] == 0.5
    assert any(tmp_path.joinpath("tensorboard").iterdir())


def test_rewind_drops_later_lines_and_a_cut_one(tmp_path):
    logs = Logs(tmp_path)
    for step in (1, 2, 3):
        logs.write(step, {"train/loss": float(step)})
    with logs.path.open("a") as file:
        file.write('{"step": 2, "tr')
    logs.rewind(2)
    logs.close()
    assert [line["step"] for line in read(tmp_path)] == [1, 2]


def read_events(path):
    """Records of an event file: length u64, its checksum u32, the event, its checksum u32."""
    content, start, events = path.read_bytes(), 0, []
    while start < len(content):
        size = int.from_bytes(content[start : start + 8], "little")
        events.append(Event.FromString(content[start + 12 : start + 12 + size]))
        start += size + 16
    return events


def test_rewind_purges_later_points_from_tensorboard(tmp_path):
    for steps in ((1, 2, 3), (3, 4)):
        logs = Logs(tmp_path)
        logs.rewind(steps[0] - 1)
        for step in steps:
            logs.write(step, {"train/loss": float(step)})
        logs.close()
    files = tmp_path.joinpath("tensorboard").iterdir()
    purges = [
        event.step for file in files for event in read_events(file) if event.HasField("session_log")
    ]
    assert purges == [3]

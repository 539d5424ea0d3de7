"""TensorBoard's event files, read back."""

from tensorboardX.proto.event_pb2 import Event


def read_events(path):
    """Records of an event file: length u64, its checksum u32, the event, its checksum u32."""
    content, start, events = path.read_bytes(), 0, []
    while start < len(content):
        size = int.from_bytes(content[start : start + 8], "little")
        events.append(Event.FromString(content[start + 12 : start + 12 + size]))
        start += size + 16
    return events

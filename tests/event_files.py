"""Reads the files that TensorBoard shows."""

import pytest
from tensorboardX.proto.event_pb2 import Event


def events(folder):
    """Tag, step and value of all events in a folder."""
    found = []
    for file in folder.rglob("events.out.tfevents.*"):
        data = file.read_bytes()
        while data:  # A record: its length in 8 bytes, a checksum in 4, the event, a checksum in 4.
            size = int.from_bytes(data[:8], "little")
            event, data = Event.FromString(data[12 : 12 + size]), data[16 + size :]
            for value in event.summary.value:
                text = value.tensor.string_val[0].decode() if value.tensor.string_val else None
                found.append((value.tag, event.step, text or pytest.approx(value.simple_value)))
    return found

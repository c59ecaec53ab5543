"""Discontinuous EDF and BDF files, which edfio reads but does not write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edfio import EdfAnnotation

from brain2img.studies.edf import read_header

_ROOM = "room" * 8


def room(n_records: int) -> list[EdfAnnotation]:
    """Return annotations that keep room in every record for `begin_records_at`, which takes them out."""
    return [EdfAnnotation(float(i), None, _ROOM) for i in range(n_records)]


def begin_records_at(path: Path, starts: Sequence[float]) -> None:
    """Make of a file that edfio has written with `room` a discontinuous one: when each record begins (s)."""
    header, data = read_header(path), bytearray(path.read_bytes())
    data[192:197] = b"BDF+D" if header.width == 3 else b"EDF+D"
    sizes = [header.width * channel.n_samples for channel in header.channels]
    for i, start in enumerate(starts):
        at = header.n_bytes + (i + 1) * sum(sizes) - sizes[-1]
        _, *tals = bytes(data[at:at + sizes[-1]]).split(b"\0")
        first = f"+{start:.6f}".rstrip("0").rstrip(".").encode() + b"\x14\x14"
        record = b"\0".join([first, *(tal for tal in tals if tal and _ROOM.encode() not in tal)]) + b"\0"
        assert len(record) <= sizes[-1]
        data[at:at + sizes[-1]] = record.ljust(sizes[-1], b"\0")
    path.write_bytes(data)

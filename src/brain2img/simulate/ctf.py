"""The smallest CTF recording that MNE reads as one: ``.ds`` with ``.res4``, ``.meg4`` and ``.hc``.

Written after the reader, `mne.io.read_raw_ctf`: sensors and triggers, integer samples, a system clock that stops at the
last valid sample, head coils, one reference sensor. The compensation by the reference is there, as the reader wants it,
but all its coefficients are 0.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

#: Tesla per step of the integer samples.
STEP = 1e-17
_CLOCK, _HEADER = "SCLK01-177", b"MEG41CP\x00"
_REFERENCE = "BG1-1609"
_REFERENCE_SENSOR, _MEG, _STIM, _SYSTEM_CLOCK = 0, 5, 11, 17
#: Bytes of ``.res4`` before its list of filters.
_HEADER_SIZE = 1844
_COIL = np.dtype([("pos", ">f8", 3), ("d0", ">f8"), ("norm", ">f8", 3), ("d1", ">f8"), ("turns", ">i2"), ("d2", ">i4"),
                  ("d3", ">i2"), ("area", ">f8")])
_CHANNEL = np.dtype([("sensor_type", ">i2"), ("run", ">i2"), ("coil_type", ">i4"), ("proper_gain", ">f8"),
                     ("qgain", ">f8"), ("io_gain", ">f8"), ("io_offset", ">f8"), ("num_coils", ">i2"),
                     ("grad_order", ">i2"), ("d0", ">i4"), ("coil", _COIL, 8), ("head_coil", _COIL, 8)])
_BALANCE = np.dtype([("sensor", "S32"), ("kind", ">i4"), ("d0", ">i4"), ("n", ">i2"), ("references", "S31", 50),
                     ("coefficients", ">f8", 50)])
_FIRST_ORDER = 0x47314252  # "G1BR"
#: Head coils in head coordinates (m): x right, y to the nose, z up.
_COILS = {"nasion": (0.0, 0.1, 0.0), "left ear": (-0.075, 0.0, 0.0), "right ear": (0.075, 0.0, 0.0)}


def _dewar(points: np.ndarray) -> np.ndarray:
    """Head coordinates (m) -> CTF's dewar coordinates (cm), turned by 45 degrees and 190 mm lower."""
    c = np.sqrt(0.5)
    return (np.asarray(points) - [0.0, 0.0, 0.19]) @ np.array([[c, -c, 0], [c, c, 0], [0, 0, 1]]) * 100


def write_ctf(path: Path, signals: np.ndarray, *, triggers: np.ndarray, names: list[str], positions: np.ndarray,
              sfreq: float, block: float = 1.0) -> None:
    """Write one continuous recording.

    Parameters
    ----------
    path
        Folder ``<name>.ds``, made here.
    signals
        ``(C, n)`` in T.
    triggers
        ``(n,)`` values of the trigger channel UPPT001.
    names
        C names, as "MLC11-1609".
    positions
        ``(C, 3)`` places of the sensors, head coordinates (m).
    sfreq
        Samples per second (Hz).
    block
        Seconds in one of CTF's "trials"; the last is filled up with zeros.
    """
    path.mkdir(parents=True)
    n_block = round(block * sfreq)
    n_blocks = -(-signals.shape[1] // n_block)
    rows = np.zeros((len(names) + 3, n_blocks * n_block), dtype=">i4")
    rows[1:-2, :signals.shape[1]] = np.rint(signals / STEP)
    rows[-2, :signals.shape[1]] = triggers
    rows[-1, :signals.shape[1]] = np.arange(1, signals.shape[1] + 1)

    header = bytearray(_HEADER_SIZE)
    for offset, form, value in ((0, "8s", b"MEG42RS\x00"), (1288, ">i", n_block), (1292, ">h", len(rows)),
                                (1296, ">d", sfreq), (1304, ">d", block), (1312, ">h", n_blocks)):
        struct.pack_into(form, header, offset, value)
    channels = np.zeros(len(rows), dtype=_CHANNEL)
    channels["sensor_type"] = [_REFERENCE_SENSOR, *[_MEG] * len(names), _STIM, _SYSTEM_CLOCK]
    channels["proper_gain"][:-2], channels["qgain"][:-2] = -1.0, -1 / STEP  # a negative gain: normals point outward
    channels["proper_gain"][-2:], channels["qgain"][-2:] = 1.0, 1.0
    channels["io_gain"] = 1.0
    channels["num_coils"][1:-2] = 2
    outward = positions - positions.mean(axis=0)
    outward /= np.linalg.norm(outward, axis=1, keepdims=True)
    for coil, distance in enumerate((0.0, 0.05)):
        channels["coil"]["pos"][1:-2, coil] = _dewar(positions + distance * outward)
        channels["coil"]["norm"][1:-2, coil] = (_dewar(outward) - _dewar(np.zeros(3))) / 100
    channels["coil"]["pos"][0, 0], channels["coil"]["norm"][0, 0] = _dewar(np.array([0.0, 0.0, 0.3])), (0.0, 0.0, 1.0)
    balance = np.zeros(len(names), dtype=_BALANCE)
    balance["sensor"], balance["kind"], balance["n"] = names, _FIRST_ORDER, 1
    balance["references"][:, 0] = _REFERENCE
    all_names = b"".join(name.encode().ljust(32, b"\0") for name in [_REFERENCE, *names, "UPPT001", _CLOCK])
    no_filters = struct.pack(">h", 0)
    file = path / path.stem
    file.with_suffix(".res4").write_bytes(bytes(header) + no_filters + all_names + channels.tobytes()
                                          + struct.pack(">h", len(balance)) + balance.tobytes())
    with file.with_suffix(".meg4").open("wb") as out:
        out.write(_HEADER)
        for start in range(0, rows.shape[1], n_block):
            out.write(rows[:, start:start + n_block].tobytes())
    lines = []
    for name, place in _COILS.items():
        in_head = np.array([place[1], -place[0], place[2]]) * 100  # CTF's head has x to the nose and y to the left
        for where, point in (("dewar", _dewar(np.array(place))), ("head", in_head)):
            lines.append(f"measured {name} coil position relative to {where} (cm):")
            lines += [f"\t{axis} = {value:.9f}" for axis, value in zip("xyz", point, strict=True)]
    file.with_suffix(".hc").write_text("\n".join(lines) + "\n")

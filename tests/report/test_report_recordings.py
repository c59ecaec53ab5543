"""Sensors are laid out as a head seen from above."""

from __future__ import annotations

import numpy as np
from fake_outputs import eeg_spec

from brain2img.report.recordings import _flat


def test_sensors_lie_within_the_head_where_they_belong():
    spec = eeg_spec("sub-01")
    flat = dict(zip(spec.ch_names, _flat(spec.positions), strict=True))
    assert max(np.hypot(*p) for p in flat.values()) <= 0.95 + 1e-9
    assert np.hypot(*flat["Cz"]) < 0.15
    assert flat["AF7"][1] > 0.3 > flat["C3"][1] > -0.3 > flat["P7"][1]  # front is up
    assert flat["C3"][0] < 0 < flat["C4"][0]  # left is left
    np.testing.assert_allclose(flat["C3"] * [-1, 1], flat["C4"], atol=0.05)


def test_layout_does_not_depend_on_origin_or_unit():
    places = eeg_spec("sub-01").positions
    np.testing.assert_allclose(_flat(1000 * places + [10, -20, 30]), _flat(places), atol=1e-8)

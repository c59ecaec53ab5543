"""Outputs trees for the tests of the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_outputs import FakeOutputs, eeg_spec, fmri_spec


@pytest.fixture
def fake(tmp_path: Path) -> FakeOutputs:
    return FakeOutputs(tmp_path)


@pytest.fixture(scope="session")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[FakeOutputs, Path]:
    """Everything there is: two studies, time course, repetitions."""
    fake = FakeOutputs(tmp_path_factory.mktemp("outputs"))
    fake.scenes("scenes_fmri", [fmri_spec(s, fake.rng) for s in ("sub-01", "sub-02")], "mindbridge")
    fake.scenes("scenes_eeg", [eeg_spec("sub-01")], "atm")
    base = {"study": "scenes_eeg", "subject": "sub-01", "decoder": "atm", "space": "clip", "metric": "top1",
            "chance": 0.05}
    course = pd.DataFrame([{**base, "time": t, "width": 0.1, "value": 0.05 + 0.2 * (t > 0.1), "low": 0.02, "high": 0.3}
                           for t in np.linspace(-0.15, 0.9, 15)])
    curve = pd.DataFrame([{**base, "direction": "image_from_brain", "repetitions": r, "value": 0.1 * (r + 1),
                           "low": 0.1 * r, "high": 0.1 * (r + 2)} for r in (1, 2)])
    return fake, fake.write(time_course=course, repetitions=curve)

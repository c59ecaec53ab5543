"""Identity of a study's stimuli, by which studies and copies of them share embeddings."""

from __future__ import annotations

import h5py
import numpy as np
import pandas as pd

from brain2img.data.prepared import PreparedStudy, PreparedWriter
from brain2img.records import SignalSpec
from brain2img.stages import prepare

PICTURES = np.random.default_rng(0).integers(0, 255, (6, 8, 8, 3), dtype=np.uint8)


def stimuli_id(out, *, pictures=PICTURES, raw=None, image_size=None):
    """Prepare a study whose pictures are packed, or stay under `raw`, and return the identity of its stimuli."""
    out.mkdir(parents=True)
    stimuli = pd.DataFrame({"stimulus_id": [f"s{i}" for i in range(6)], "kind": "image", "attributes": None})
    writer = PreparedWriter(out, study="test")
    writer.add_subject(SignalSpec(subject="sub-01", modality="fmri", units="a.u.", n_channels=1, n_times=1),
                       trials=stimuli[["stimulus_id"]].assign(split="train"), signals=[np.zeros((6, 1, 1))])
    if raw is None:
        writer.finish(stimuli, images=pictures)
    else:
        raw.mkdir()
        with h5py.File(raw / "pictures.hdf5", "w") as file:
            file["images"] = pictures
        writer.finish(stimuli.assign(file=f"{raw}/pictures.hdf5::images", pointer=range(6)), image_size=image_size)
    return prepare._stimuli_id(PreparedStudy(out, finished=False))


def test_packed_pictures_are_known_by_their_content(tmp_path):
    same = [stimuli_id(tmp_path / name) for name in ("a", "b")]
    assert same[0] == same[1]
    assert stimuli_id(tmp_path / "c", pictures=PICTURES[::-1]) != same[0]


def test_pictures_outside_are_known_wherever_they_lie(tmp_path):
    here = stimuli_id(tmp_path / "a", raw=tmp_path / "here")
    assert stimuli_id(tmp_path / "b", raw=tmp_path / "there") == here == stimuli_id(tmp_path / "packed")
    changed = PICTURES.copy()
    changed[5, 7, 7, 2] ^= 1
    assert stimuli_id(tmp_path / "c", raw=tmp_path / "other", pictures=changed) != here
    assert stimuli_id(tmp_path / "d", raw=tmp_path / "smaller", image_size=4) != here

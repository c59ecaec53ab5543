"""fMRI of handwritten sixes and nines (van Gerven et al. 2010)."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd

from brain2img.artifacts import file_digest
from brain2img.data.pictures import pictures_from
from brain2img.data.prepared import PreparedWriter
from brain2img.interfaces import Study
from brain2img.records import SignalSpec
from brain2img.studies.matlab import read_matlab

VARIABLES = ("fmriTrn", "fmriTest", "stimTrn", "stimTest", "labelTrn", "labelTest")
DIGITS = {1: "6", 2: "9"}


class Digit69(Study):
    """One person looking at handwritten 6s and 9s, responses of voxels in V1 to V3, one trial per stimulus.

    van Gerven, de Lange & Heskes 2010, "Neural decoding with hierarchical generative models",
    https://doi.org/10.1162/NECO_a_00047; file as shared with https://github.com/ChangdeDu/DGMM: MATLAB with
    ``fmriTrn (n, V)``, ``stimTrn (n, side * side)`` 0..255 stored column by column, ``labelTrn`` 1 = six, 2 = nine,
    and the same with ``Test``. Numbers of trials, voxels and pixels come from the file.

    Parameters
    ----------
    subject
        Name given to the one subject.
    """

    name, modality, has_attributes = "digit69", "fmri", True

    def __init__(self, *, subject: str = "sub-01") -> None:
        self.subject = subject

    def raw_id(self, raw: Path | None) -> str:
        """Return a hash of the file's content."""
        return file_digest(self._existing(raw))

    def _existing(self, raw: Path | None) -> Path:
        if raw is None or not Path(raw).is_file():
            raise ValueError(f"raw: expected the MATLAB file digit69_28x28.mat, got "
                             f"{'nothing' if raw is None else f'{raw}, which is no file'}. Give raw=<file.mat>; "
                             "docs/studies/digit69.md says where to ask for it.")
        return Path(raw)

    def prepare(self, raw: Path | None, out: Path) -> None:
        """Write the prepared study from the MATLAB file `raw`."""
        values = self._read(self._existing(raw))
        signals, images, digits, splits = [], [], [], []
        for part, split in (("Trn", "train"), ("Test", "test")):
            x, pixels, labels = (values[f"{name}{part}"] for name in ("fmri", "stim", "label"))
            side = round(np.sqrt(pixels.shape[1]))
            # MATLAB keeps pictures column by column
            pixels = pictures_from(pixels, expected="0..255", what=f"{self._existing(raw).name}, stim{part}")
            images.append(pixels.reshape(-1, side, side).transpose(0, 2, 1))
            signals.append(x)
            digits += [DIGITS[int(label)] for label in labels.ravel()]
            splits += [split] * len(x)
        x = np.concatenate(signals).astype(np.float32)[:, :, None]
        varying = np.ptp(x, axis=0)[:, 0] != 0  # NaN stays, to be refused
        ids = [f"{split}-{i:04d}" for i, split in enumerate(splits)]
        writer = PreparedWriter(out, study=self.name)
        spec = SignalSpec(subject=self.subject, modality="fmri", units="a.u.", n_channels=int(varying.sum()), n_times=1,
                          filtered="as published; voxels that are constant in the file are left out")
        trials = pd.DataFrame({"stimulus_id": ids, "session": "1", "repetition": 0, "split": splits})
        writer.add_subject(spec, trials=trials, signals=[x[:, varying]])
        writer.finish(
            pd.DataFrame({"stimulus_id": ids, "kind": "image", "concept": digits, "category": "digit",
                          "captions": [[f"a handwritten {'six' if d == '6' else 'nine'}"] for d in digits],
                          "attributes": [{"digit": d} for d in digits]}),
            images=np.concatenate(images))

    def _read(self, path: Path) -> dict[str, np.ndarray]:
        values = read_matlab(path, names=VARIABLES, source="Give the digits 6/9 file.")
        for part in ("Trn", "Test"):
            x, pixels, labels = (values[f"{name}{part}"] for name in ("fmri", "stim", "label"))
            if not (len(x) == len(pixels) == labels.size) or len(x) == 0:
                raise ValueError(f"{path.name}: expected as many rows in fmri{part}, stim{part} and label{part}, got "
                                 f"{len(x)}, {len(pixels)} and {labels.size}. Give the file as shared.")
            if round(np.sqrt(pixels.shape[1])) ** 2 != pixels.shape[1]:
                raise ValueError(f"{path.name}: expected square images in stim{part}, got {pixels.shape[1]} pixels. "
                                 "Give the file as shared.")
            if not set(np.unique(labels)) <= set(DIGITS):
                raise ValueError(f"{path.name}: expected labels 1 (six) and 2 (nine) in label{part}, got "
                                 f"{np.unique(labels).tolist()}. Give the file as shared.")
        if values["fmriTrn"].shape[1] != values["fmriTest"].shape[1]:
            raise ValueError(f"{path.name}: expected the same voxels in fmriTrn and fmriTest, got "
                             f"{values['fmriTrn'].shape[1]} and {values['fmriTest'].shape[1]}. Give one file.")
        return values

    @classmethod
    def tiny(cls) -> Self:
        """Return the study; its files are what makes it small or large."""
        return cls()

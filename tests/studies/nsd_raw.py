"""What the tests of NSD share: preparing, being refused, and changing raw files."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from brain2img.data.prepared import PreparedStudy
from brain2img.studies.nsd import NSD

SUBJECTS = (1, 4)


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def prepare(raw, out, **arguments):
    out.mkdir(exist_ok=True)
    NSD(**({"subjects": SUBJECTS, "val_fraction": 0.2} | arguments)).prepare(raw, out)
    return PreparedStudy(out, finished=False)


def refused(raw, out, message, **arguments):
    """Prepare, expect this message, and nothing that looks finished."""
    with pytest.raises(ValueError, match=message):
        prepare(raw, out, **arguments)
    assert not (out / "spec.json").exists()
    assert not (out / "trials.parquet").exists()


def names(images):
    return [f"nsd{n + 1:05d}" for n in images]


def known(sim, subject, *, rows=slice(None)):
    """Return the trials and the betas (percent signal change, before rounding) of a subject."""
    return sim.trials(subject).iloc[rows].reset_index(drop=True), sim.recording(subject)[1][rows]


def session_file(raw, number=2, suffix=".nii.gz", subject=1):
    return next(raw.glob(f"nsddata_betas/ppdata/subj{subject:02d}/*/*/betas_session{number:02d}{suffix}"))


def rewrite_nifti(path, change, dtype=np.int16):
    image = nibabel.load(path)
    values, affine = np.asarray(image.dataobj), image.affine
    path.unlink()
    nibabel.save(nibabel.Nifti1Image(change(values).astype(dtype), affine), path)

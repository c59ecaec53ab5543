"""Which of a subject's values a space is decoded from, by the ROI labels of the voxels."""

from __future__ import annotations

import numpy as np

from brain2img.records import SignalSpec


def roi_labels(spec: SignalSpec, *, what: str) -> tuple[str, ...]:
    """Return the ROI label of every voxel.

    Raises
    ------
    ValueError
        If there are none; `what` asked for them.
    """
    if not spec.rois:
        raise ValueError(f"{what}: expected ROI labels of the voxels of subject {spec.subject!r}, got none. Prepare "
                         "the study with labels (NSD: study.voxels=nsdgeneral:streams), or leave this option out.")
    return spec.rois


def features_of(spec: SignalSpec, rois: tuple[str, ...], *, space: str) -> np.ndarray:
    """Return which of the ``C * T`` values of a signal belong to these ROIs; all where none is named.

    Raises
    ------
    ValueError
        If the subject has no voxels of one of them.
    """
    if not rois:
        return np.arange(spec.n_channels * spec.n_times)
    labels = np.array(roi_labels(spec, what="decoder.rois"))
    if missing := [name for name in rois if name not in labels]:
        known = sorted(set(labels.tolist()))
        raise ValueError(f"decoder.rois of space {space!r}: expected ROIs of {known} for subject {spec.subject!r}, got "
                         f"{missing}. Correct them, or prepare the study with other labels.")
    return np.flatnonzero(np.repeat(np.isin(labels, rois), spec.n_times))

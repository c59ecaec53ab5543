"""Voxels by the label of their region, and named sets of regions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np

from brain2img.records import SignalSpec

ALL = "all"


def labels_of(spec: SignalSpec) -> tuple[str, ...]:
    """Return the label of every voxel ("" for none).

    Raises
    ------
    ValueError
        If the study does not know the regions of its voxels.
    """
    if not any(spec.rois):
        raise ValueError(f"regions of subject {spec.subject!r}: expected a label for every voxel, got none. Prepare "
                         "the study with an atlas (NSD: study.form=nifti or hdf5, study.voxels=nsdgeneral:<labels>).")
    return spec.rois


def roi_places(spec: SignalSpec, patterns: Sequence[str]) -> np.ndarray:
    """Return the places ``(n,)`` of the voxels whose label is among `patterns`, in the order of the file.

    Parameters
    ----------
    spec
        The subject's signals.
    patterns
        Labels, or shell wildcards for several ("V1*"); "" for voxels without one. Those with "!" before them are taken
        away from the others, or from all voxels where there are no others.

    Raises
    ------
    ValueError
        If there are no labels, one of the patterns fits none of this subject's, or no voxel is left.
    """
    labels = labels_of(spec)
    known = list(dict.fromkeys(labels))
    chosen = {False: set(), True: set()} if any(not p.startswith("!") for p in patterns) else {
        False: set(known), True: set()}
    for pattern in patterns:
        wanted = pattern.removeprefix("!")
        matching = {label for label in known if label == wanted or fnmatchcase(label, wanted)}
        if not matching:
            raise ValueError(f"regions of subject {spec.subject!r}: expected some of {known}, got {pattern!r}. Correct "
                             "data.rois, decoder.rois or regions.sets.")
        chosen[pattern.startswith("!")] |= matching
    kept = chosen[False] - chosen[True]
    places = np.flatnonzero([label in kept for label in labels])
    if len(places) == 0:
        raise ValueError(f"regions of subject {spec.subject!r}: expected {list(patterns)} to leave voxels, got none. "
                         f"Its voxels are in {known}.")
    return places


def roi_sets(specs: Mapping[str, SignalSpec], sets: Mapping[str, Sequence[str] | None] | None, *, part: str
             ) -> dict[str, list[str] | None]:
    """Return set -> patterns for `roi_places`, or None for all voxels.

    Parameters
    ----------
    specs
        Subject -> its signals.
    sets
        Name -> labels or patterns, None for all voxels. None as a whole: all voxels, then every label by itself that
        all subjects have.
    part
        "alone": the voxels of the set; "without": all others ("all" stays what it is).

    Raises
    ------
    ValueError
        If a subject has no labels, a pattern fits none, `part` is unknown, or nothing is left.
    """
    if part not in ("alone", "without"):
        raise ValueError(f"regions.part: expected 'alone' or 'without', got {part!r}. Correct it.")
    known = [labels_of(spec) for spec in specs.values()]
    if sets is None:
        shared = [label for label in dict.fromkeys(known[0]) if label and all(label in labels for labels in known)]
        sets = {ALL: None, **{label: [label] for label in shared}}
    found: dict[str, list[str] | None] = {}
    for name, patterns in sets.items():
        found[name] = None if patterns is None else [f"!{p}" if part == "without" else p for p in patterns]
        for spec in specs.values():
            voxels_of(spec, found[name])
    return found


def voxels_of(spec: SignalSpec, patterns: Sequence[str] | None) -> np.ndarray:
    """Return the places of the voxels of `roi_places`, of all voxels where `patterns` is None."""
    return np.arange(spec.n_channels) if patterns is None else roi_places(spec, patterns)

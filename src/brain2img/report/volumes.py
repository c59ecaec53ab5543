"""Maps of voxels: NIfTI files in the subject's own volume, and slices through them."""

from __future__ import annotations

import dataclasses
import gzip
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from brain2img.artifacts import writing
from brain2img.records import SignalSpec
from brain2img.report.figures import Picture, new_figure, styled, to_uri
from brain2img.report.reading import Results
from brain2img.report.style import decoder_label
from brain2img.volumes import geometry

if TYPE_CHECKING:
    from matplotlib.figure import Figure

N_SLICES = 6
MAX_SUBJECTS = 3


def to_volume(values: np.ndarray, spec: SignalSpec, *, empty: float = np.nan) -> np.ndarray:
    """Return the subject's volume ``(x, y, z)`` float32 with `values` ``(C,)`` in its voxels and `empty` elsewhere.

    Raises
    ------
    ValueError
        If the voxels have no places, or there is not one value for each.
    """
    ijk, shape = geometry(spec)
    if len(values) != len(ijk):
        raise ValueError(f"map of subject {spec.subject!r}: expected a value for each of {len(ijk)} voxels, got "
                         f"{len(values)}. Make the map with the run's own channels.")
    volume = np.full(shape, empty, dtype=np.float32)
    volume[tuple(ijk.T)] = values
    return volume


def _image(values: np.ndarray, spec: SignalSpec, *, empty: float = np.nan) -> Any:
    import nibabel

    geometry(spec, needs_affine=True)
    affine = np.asarray(spec.affine, dtype=float)
    image = nibabel.Nifti1Image(to_volume(values, spec, empty=empty), affine)
    # programs that read the qform alone find the same place; code 2: aligned to volumes of this subject. A quaternion
    # holds no shear
    image.set_sform(affine, code=2)
    image.set_qform(affine, code=2)
    if not np.allclose(image.get_qform(), affine, atol=1e-3):
        image.set_qform(None, code=0)
    return image


def write_map(values: np.ndarray, spec: SignalSpec, path: Path) -> None:
    """Write `values` ``(C,)`` as a NIfTI volume with the affine of the subject (mm), NaN outside of its voxels.

    Raises
    ------
    ValueError
        See `to_volume`; also if the affine is not known.
    """
    image = _image(values, spec)
    image.header.set_xyzt_units("mm")
    with writing(path) as temporary:
        temporary.write_bytes(gzip.compress(image.to_bytes(), mtime=0))  # the same map gives the same bytes


def importance_figure(values: np.ndarray, spec: SignalSpec, *, study: str) -> Picture:
    """Draw slices through the contributions of a subject's voxels, over the mask of those voxels."""
    with styled():
        uri = to_uri(_slices(values, spec))
    return Picture(uri, f"Voxel importance, {spec.subject}, {study}", title=f"{study}, {spec.subject}", min_width=520,
                   caption=(
        "What each voxel adds to the likeness of decoded and true embedding, on stimuli the decoder was not trained "
        "on: red adds, blue takes away, grey are voxels near 0. Slices of the subject's own volume (no template), from "
        "below upwards, z in mm. A voxel that carries nothing is expected at 0; one that repeats its neighbours shares "
        "with them."))


def importance_figures(results: Results) -> list[Picture]:
    """Return the maps of the first `MAX_SUBJECTS` subjects of every decoder whose voxels were weighed."""
    pictures = []
    for study in results.studies:
        for member in results.members_of(study):
            if member.importance is None or member.prepared is None:
                continue
            for subject, of_subject in list(member.importance.groupby("subject", sort=False))[:MAX_SUBJECTS]:
                # the run may have read some of the prepared voxels only
                spec = dataclasses.replace(
                    member.prepared.specs[str(subject)], n_channels=len(of_subject),
                    ijk=of_subject[["i", "j", "k"]].to_numpy(), rois=(), noise_ceiling=None)
                pictures.append(importance_figure(of_subject["importance"].to_numpy(), spec,
                                                  study=f"{study}, {decoder_label(member.decoder)}"))
    return pictures


def save_importance_figure(values: np.ndarray, spec: SignalSpec, path: Path) -> None:
    """Write the slices of `importance_figure` as a PNG."""
    with styled():
        _slices(values, spec).savefig(path, dpi=150)


def _cropped(spec: SignalSpec) -> SignalSpec:
    """Return the spec with its volume cut down to the voxels and a margin; they stay where they are in mm."""
    ijk, shape = geometry(spec, needs_affine=True)
    first = np.maximum(ijk.min(axis=0) - 2, 0)
    last = np.minimum(ijk.max(axis=0) + 2, np.array(shape) - 1)
    affine = np.array(spec.affine, dtype=float)
    affine[:3, 3] += affine[:3, :3] @ first
    size = last - first + 1
    return dataclasses.replace(spec, ijk=ijk - first, affine=affine,
                               volume_shape=(int(size[0]), int(size[1]), int(size[2])))


def _slices(values: np.ndarray, spec: SignalSpec) -> Figure:
    from nilearn.plotting import plot_img

    spec = _cropped(spec)
    mask = _image(np.ones(len(values)), spec, empty=0.0)
    ijk = geometry(spec)[0]
    affine = np.asarray(spec.affine, dtype=float)
    height = (ijk @ affine[:3, :3].T + affine[:3, 3])[:, 2]
    cuts = np.unique(np.round(np.quantile(height, np.linspace(0.04, 0.96, N_SLICES)), 3))
    limit = float(np.percentile(np.abs(values), 99)) or 1.0
    figure = new_figure(9.6, 2.4, layout="none")
    # voxels below the threshold show the mask behind them, a light grey between black (0) and white (1.2)
    display = plot_img(
        _image(values, spec, empty=0.0), bg_img=mask, bg_vmin=0, bg_vmax=1.2, display_mode="z",
        cut_coords=cuts.tolist(), figure=figure, colorbar=True, cmap="RdBu_r", vmin=-limit, vmax=limit,
        threshold=0.05 * limit, black_bg=False, annotate=False, draw_cross=False,
        resampling_interpolation="nearest")
    for cut in display.axes.values():  # room for the labels beside the voxels
        (left, right), (bottom, top) = cut.ax.get_xlim(), cut.ax.get_ylim()
        cut.ax.set(xlim=(1.1 * left - 0.1 * right, 1.1 * right - 0.1 * left),
                   ylim=(1.25 * bottom - 0.25 * top, 1.25 * top - 0.25 * bottom))
    display.annotate(size=7)
    figure.axes[-1].set_yticks([-limit, 0, limit], [f"{-limit:.2g}", "0", f"{limit:.2g}"])
    return figure

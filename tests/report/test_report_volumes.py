"""Maps of voxels lie where their voxels lie, in whatever order of axes the subject's volume is stored."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
from nibabel.affines import apply_affine
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from brain2img.records import SignalSpec
from brain2img.report.volumes import write_map

ROTATED = np.eye(4)
ROTATED[:3, :3] = nibabel.eulerangles.euler2mat(0.3, -0.2, 0.4) @ np.diag([1.8, 2.0, 2.2])
ROTATED[:3, 3] = (-31, 12.5, -7)
SHEARED = ROTATED @ np.array([[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])


def spec_of(affine, axes):
    """The voxels of half an asymmetric volume, stored in another order of axes, and a value for each place."""
    labels = np.arange(1.0, 1 + 5 * 6 * 7).reshape(5, 6, 7)
    labels[labels % 3 == 0] = 0
    image = nibabel.Nifti1Image(labels, affine)
    turned = image.as_reoriented(ornt_transform(io_orientation(affine), axcodes2ornt(axes)))
    values = np.asarray(turned.dataobj)
    ijk = np.argwhere(values > 0)
    return SignalSpec(subject="sub-01", modality="fmri", units="a.u.", n_channels=len(ijk), n_times=1, ijk=ijk,
                      affine=turned.affine, volume_shape=values.shape), values[tuple(ijk.T)], image


@pytest.mark.parametrize("axes", ["RAS", "LAS", "LPS", "PIR"])
@pytest.mark.parametrize("affine", [ROTATED, SHEARED], ids=["rotated", "sheared"])
def test_a_map_read_back_has_every_value_at_its_place(tmp_path, axes, affine):
    spec, values, original = spec_of(affine, axes)
    write_map(values, spec, tmp_path / "map.nii.gz")
    image = nibabel.load(tmp_path / "map.nii.gz")
    volume = np.asarray(image.dataobj)
    ijk = np.argwhere(np.isfinite(volume))
    at = np.rint(apply_affine(np.linalg.inv(original.affine), apply_affine(image.affine, ijk))).astype(int)
    assert len(ijk) == len(values) == 140
    np.testing.assert_array_equal(volume[tuple(ijk.T)], np.asarray(original.dataobj)[tuple(at.T)])
    # whichever of the two a program reads
    assert image.header["sform_code"] == 2
    assert image.header["qform_code"] == (2 if affine is ROTATED else 0)
    np.testing.assert_allclose(image.get_sform(), spec.affine, atol=1e-4)
    if affine is ROTATED:
        np.testing.assert_allclose(image.get_qform(), spec.affine, atol=1e-3)
    assert image.header.get_xyzt_units()[0] == "mm"


def test_a_map_without_an_affine_is_refused(tmp_path):
    spec, values, _ = spec_of(ROTATED, "RAS")
    spec = SignalSpec(subject="sub-01", modality="fmri", units="a.u.", n_channels=len(values), n_times=1, ijk=spec.ijk,
                      volume_shape=spec.volume_shape)
    with pytest.raises(ValueError, match=r"sub-01.*expected their places in millimetres, got no affine.*sform_code"):
        write_map(values, spec, tmp_path / "map.nii.gz")

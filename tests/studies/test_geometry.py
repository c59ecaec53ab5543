"""Volumes are compared by where their voxels lie, not by shape: a voxel has the label of its place in millimetres."""

from __future__ import annotations

import logging

import nibabel
import numpy as np
import pytest
from nibabel.affines import apply_affine
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from nsd_raw import prepare, refused, session_file

from brain2img.studies.geometry import Geometry, as_labels, as_mask, geometry_of, open_volume, read_volume

ORIENTATIONS = ("RAS", "LAS", "LPS", "PIR", "SAL")
OBLIQUE = nibabel.eulerangles.euler2mat(0.3, -0.2, 0.75)
AFFINE = np.eye(4)
AFFINE[:3, :3] = OBLIQUE @ np.diag([1.8, 2.0, 2.2])
AFFINE[:3, 3] = (-31, 12.5, -7)


def labels(shape=(5, 6, 7)):
    """A volume with a label of its own for every voxel, and no symmetry."""
    return np.arange(1, 1 + np.prod(shape)).reshape(shape).astype(np.int16)


def stored(values, affine, axes, path, *, kind=nibabel.Nifti1Image):
    """Write the same volume with its axes in another order and direction."""
    image = nibabel.Nifti1Image(values, affine)
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(axes))
    image = image.as_reoriented(turn)
    nibabel.save(kind(np.asarray(image.dataobj), image.affine), path)
    return path


def by_place(path, points):
    """Brute force: what a file holds at each of `points` ``(n, 3)`` in mm."""
    image = nibabel.load(path)
    at = np.rint(apply_affine(np.linalg.inv(image.affine), points)).astype(int)
    return np.asarray(image.dataobj)[tuple(at.T)]


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mgz"])
@pytest.mark.parametrize("axes", ORIENTATIONS)
@pytest.mark.parametrize("reference", ["RAS", "PIR"])
def test_every_voxel_has_the_label_of_its_place(tmp_path, reference, axes, ending):
    kind = nibabel.MGHImage if ending == ".mgz" else nibabel.Nifti1Image
    betas = stored(labels().astype(np.float32), AFFINE, reference, tmp_path / "betas.nii")
    other = stored(labels(), AFFINE, axes, tmp_path / f"atlas{ending}", kind=kind)
    grid = geometry_of(open_volume(betas), betas)
    found, on = read_volume(other, like=grid)
    assert on is grid
    assert found.shape == grid.shape
    ijk = np.argwhere(np.ones(grid.shape))
    points = apply_affine(grid.affine, ijk)
    np.testing.assert_array_equal(found[tuple(ijk.T)], by_place(other, points))
    assert len(np.unique(found)) == 210
    # and the other way round: where a voxel of the reference is in the file as it is stored
    mine = geometry_of(open_volume(other), other)
    there = mine.indices_of(ijk, of=grid)
    np.testing.assert_allclose(apply_affine(mine.affine, there), points, atol=1e-3)
    assert (np.asarray(nibabel.load(other).dataobj)[tuple(there.T)] == found[tuple(ijk.T)]).all()


def moved(*, scale=1.0, shift=(0, 0, 0), angle=0.0):
    affine = AFFINE.copy()
    affine[:3, :3] = nibabel.eulerangles.euler2mat(angle) @ affine[:3, :3] * scale
    affine[:3, 3] = apply_affine(AFFINE, np.array(shift, dtype=float))
    return affine


@pytest.mark.parametrize("other", [moved(scale=1.1), moved(shift=(1, 0, 0)), moved(shift=(0, 0.5, 0)), moved(angle=0.1),
                                   moved(scale=0.001)])
def test_another_grid_is_refused(tmp_path, other):
    path, mine = tmp_path / "atlas.nii", tmp_path / "betas.nii"
    nibabel.save(nibabel.Nifti1Image(labels(), other), path)
    nibabel.save(nibabel.Nifti1Image(labels(), AFFINE), mine)
    grid = geometry_of(open_volume(mine), mine)
    with pytest.raises(ValueError, match=r"atlas.nii: expected the voxels of .*betas.nii, \(5, 6, 7\) [A-Z]{3} .*in "
                                         r"any order of the axes, got .*mm; affines .*Resample it .*nearest"):
        read_volume(path, like=grid)


@pytest.mark.parametrize("shape", [(5, 6, 8), (10, 12, 14), (6, 5, 7)])
def test_another_shape_is_refused(tmp_path, shape):
    path, mine = tmp_path / "atlas.nii", tmp_path / "betas.nii"
    nibabel.save(nibabel.Nifti1Image(labels(shape), AFFINE), path)
    nibabel.save(nibabel.Nifti1Image(labels(), AFFINE), mine)
    with pytest.raises(ValueError, match=rf"atlas.nii: expected the voxels of .*got \({shape[0]}, {shape[1]}, "):
        read_volume(path, like=geometry_of(open_volume(mine), mine))


def test_rounding_is_no_other_grid(tmp_path):
    path, mine = tmp_path / "atlas.nii", tmp_path / "betas.nii"
    image = nibabel.Nifti1Image(labels(), AFFINE)
    image.set_sform(None, code=0)
    image.set_qform(AFFINE, code=1)  # a quaternion of float32
    nibabel.save(image, path)
    nibabel.save(nibabel.Nifti1Image(labels(), np.round(AFFINE, 3)), mine)
    assert not np.array_equal(nibabel.load(path).affine, nibabel.load(mine).affine)
    found, _ = read_volume(path, like=geometry_of(open_volume(mine), mine))
    np.testing.assert_array_equal(found, labels())


def test_trailing_axes_of_length_1(tmp_path):
    path = tmp_path / "mask.nii.gz"
    nibabel.save(nibabel.Nifti1Image(labels()[..., None, None], AFFINE), path)
    found, grid = read_volume(path)
    assert grid.shape == found.shape == (5, 6, 7)
    np.testing.assert_array_equal(found, labels())
    nibabel.save(nibabel.Nifti1Image(np.repeat(labels()[..., None], 2, axis=3), AFFINE), path)
    with pytest.raises(ValueError, match=r"mask.nii.gz: expected one volume of three axes, got \(5, 6, 7, 2\)"):
        read_volume(path)


def test_no_affine_is_said_and_not_made_up(tmp_path, caplog):
    path, mine = tmp_path / "a/mask.nii", tmp_path / "b/betas.nii"
    for each in (path, mine):
        each.parent.mkdir()
        nibabel.save(nibabel.Nifti1Image(labels(), AFFINE), each)
    image = nibabel.Nifti1Image(labels(), None)
    image.header["sform_code"] = image.header["qform_code"] = 0
    nibabel.save(image, path)
    assert np.any(nibabel.load(path).affine)  # which nibabel makes up
    grid = geometry_of(open_volume(mine), mine)
    assert geometry_of(open_volume(path), path).affine is None
    with caplog.at_level(logging.WARNING):
        found, _ = read_volume(path, like=grid)
        read_volume(path, like=grid)
    np.testing.assert_array_equal(found, labels())
    assert caplog.text.count("no affine (sform_code and qform_code are 0") == 1
    with pytest.raises(ValueError, match=r"mask.nii: expected a volume of \(5, 6, 8\) like .*betas"):
        read_volume(path, like=Geometry(mine, (5, 6, 8), AFFINE))


def test_sform_and_qform_that_contradict_each_other(tmp_path, caplog):
    image = nibabel.Nifti1Image(labels(), AFFINE)
    image.set_sform(AFFINE, code=2)
    image.set_qform(AFFINE, code=1)
    path = tmp_path / "mask.nii"
    nibabel.save(image, path)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_allclose(geometry_of(open_volume(path), path).affine, AFFINE, atol=1e-5)
    assert not caplog.text
    image.set_qform(AFFINE @ np.diag([-1, 1, 1, 1]), code=1)
    nibabel.save(image, path)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_allclose(geometry_of(open_volume(path), path).affine, AFFINE, atol=1e-5)
    assert "sform and qform contradict each other" in caplog.text


@pytest.mark.parametrize("affine", [np.diag([1.8, 0, 1.8, 1]), np.full((4, 4), np.nan)])
def test_an_affine_that_is_none(tmp_path, affine):
    image = nibabel.Nifti1Image(labels(), np.eye(4))
    image.header["srow_x"], image.header["srow_y"], image.header["srow_z"] = affine[:3]
    path = tmp_path / "mask.nii"
    path.write_bytes(image.header.binaryblock + bytes(4) + labels().tobytes(order="F"))
    with pytest.raises(ValueError, match=r"mask.nii: expected an affine that leads from voxels to millimetres, got"):
        read_volume(path)


def test_masks_and_labels(tmp_path, caplog):
    path = tmp_path / "x.nii"
    values = np.array([[[0.0, np.nan, 1.0, 0.5, -1.0]]])
    with caplog.at_level(logging.WARNING):
        assert as_mask(values, path).tolist() == [[[False, False, True, True, False]]]
        assert as_labels(np.array([0.0, 0.9999, 2.0001, np.nan, -1.0]), path).tolist() == [0, 1, 2, 0, -1]
    assert caplog.text.count("NaN") == 2
    with pytest.raises(ValueError, match=r"x.nii: expected whole numbers as labels, got 1.5 and 2 such voxels in all"):
        as_labels(np.array([1.0, 1.5, 0.3]), path)
    with pytest.raises(ValueError, match=r"x.nii: expected voxels above 0, got none"):
        as_mask(np.zeros((2, 2, 2)), path)


# ---- in NSD --------------------------------------------------------------------------------------------------------

def turn(path, axes, change=lambda values: values):
    """Store a file of the raw folder with its axes in another order; its places in millimetres stay."""
    image = nibabel.load(path)
    image = nibabel.Nifti1Image(change(np.asarray(image.dataobj)), image.affine)
    path.unlink()
    nibabel.save(image.as_reoriented(ornt_transform(io_orientation(image.affine), axcodes2ornt(axes))), path)


@pytest.mark.parametrize("form", [".nii.gz", ".hdf5"])
@pytest.mark.parametrize("axes", ["LAS", "PIR"])
def test_turned_volumes_of_nsd_give_the_same(nsd_folder, nsd_copy, tmp_path, form, axes):
    asked = {"subjects": [1], "voxels": "nsdgeneral:prf-visualrois"}
    before = prepare(nsd_folder(form), tmp_path / "before", **asked)
    raw = nsd_copy(form)
    folder = raw / "nsddata/ppdata/subj01/func1pt8mm"
    # one after the other, so that they disagree; a trailing axis of length 1 is none
    for path in (folder / "roi/prf-visualrois.nii.gz", next(raw.glob("nsddata_betas/**/subj01/**/ncsnr.nii.gz")),
                 folder / "roi/nsdgeneral.nii.gz"):
        turn(path, axes, change=(lambda values: values[..., None]) if axes == "PIR" else lambda values: values)
        after = prepare(raw, tmp_path / path.name, **asked)
        mine, other = before.specs["subj01"], after.specs["subj01"]
        np.testing.assert_array_equal(other.ijk, mine.ijk)
        np.testing.assert_allclose(other.affine, mine.affine)
        assert other.rois == mine.rois
        np.testing.assert_allclose(other.noise_ceiling, mine.noise_ceiling)
        np.testing.assert_array_equal(after.signals("subj01"), before.signals("subj01"))
    labels_there = by_place(folder / "roi/prf-visualrois.nii.gz", apply_affine(other.affine, other.ijk)).ravel()
    assert len(set(other.rois)) > 2
    table = (raw / "nsddata/freesurfer/subj01/label/prf-visualrois.mgz.ctab").read_text().split()
    names = dict(zip(map(int, table[::2]), table[1::2], strict=True)) | {0: ""}
    assert list(other.rois) == [names[max(int(n), 0)] for n in labels_there]


def test_a_set_of_one_hemisphere(nsd_copy, tmp_path):
    """It has the labels of both hemispheres' table."""
    raw = nsd_copy(".nii.gz")
    folder = raw / "nsddata/ppdata/subj01/func1pt8mm/roi"
    image = nibabel.load(folder / "prf-visualrois.nii.gz")
    values = np.asarray(image.dataobj).copy()
    values[17:] = 0
    nibabel.save(nibabel.Nifti1Image(values, image.affine), folder / "lh.prf-visualrois.nii.gz")
    spec = prepare(raw, tmp_path / "out", subjects=[1], voxels="lh.prf-visualrois").specs["subj01"]
    np.testing.assert_array_equal(spec.ijk, np.argwhere(values > 0))
    assert apply_affine(spec.affine, spec.ijk)[:, 0].max() <= 0
    assert set(spec.rois) <= {"V1", "V2", "V3", "V4"}


def test_sessions_of_several_orientations(nsd_folder, nsd_copy, tmp_path):
    raw = nsd_copy(".nii.gz")
    for number, axes in ((2, "LAS"), (4, "PIR")):
        turn(session_file(raw, number), axes, change=lambda values: values[..., None])
    before, after = (prepare(folder, tmp_path / name, subjects=[1])
                     for folder, name in ((nsd_folder(".nii.gz"), "before"), (raw, "after")))
    np.testing.assert_array_equal(after.signals("subj01"), before.signals("subj01"))
    np.testing.assert_array_equal(after.specs["subj01"].ijk, before.specs["subj01"].ijk)
    # where the first session lies otherwise, all is on its grid: the same voxels in another order
    turn(session_file(raw, 1), "PIR")
    other = prepare(raw, tmp_path / "other", subjects=[1])
    spec, mine = other.specs["subj01"], before.specs["subj01"]
    points, there = (np.round(apply_affine(s.affine, s.ijk), 3) for s in (mine, spec))
    order = [np.flatnonzero((there == point).all(axis=1))[0] for point in points]
    np.testing.assert_array_equal(other.signals("subj01")[:, order], before.signals("subj01"))
    assert [spec.rois[n] for n in order] == list(mine.rois)


def test_valid_sessions_may_lie_otherwise(nsd_sim, nsd_copy, tmp_path):
    raw = nsd_copy(".hdf5")
    folder = raw / "nsddata/ppdata/subj01/func1pt8mm"
    brain = nibabel.load(folder / "brainmask.nii.gz")
    valid = np.asarray(brain.dataobj).copy()
    valid[:15] = 0
    nibabel.save(nibabel.Nifti1Image(valid, brain.affine), folder / "valid_session01.nii.gz")
    turn(folder / "valid_session01.nii.gz", "LAS")
    study = prepare(raw, tmp_path / "out", subjects=[1], voxels="brain")
    np.testing.assert_array_equal(study.specs["subj01"].ijk, np.argwhere(valid > 0))


def test_shifted_volumes_of_nsd_are_refused(nsd_copy, tmp_path):
    raw = nsd_copy(".nii.gz")
    path = raw / "nsddata/ppdata/subj01/func1pt8mm/roi/nsdgeneral.nii.gz"
    image = nibabel.load(path)
    affine = image.affine.copy()
    affine[0, 3] += 2
    values = np.asarray(image.dataobj)
    path.unlink()
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    refused(raw, tmp_path / "out", r"nsdgeneral.nii.gz: expected the voxels of .*betas_session01.nii.gz, .*RAS with "
                                   r"voxels of 2 x 2 x 2 mm, the first at", subjects=[1])
    nibabel.save(nibabel.Nifti1Image(values + 0.4, image.affine), path)
    refused(raw, tmp_path / "out", r"nsdgeneral.nii.gz: expected whole numbers as labels", subjects=[1])

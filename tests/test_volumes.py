"""Voxels on a common volume in patches, against a loop and torch's own resizing."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from brain2img.records import SignalSpec
from brain2img.volumes import VolumeGrid


def spec(name, shape, n, *, seed=0, affine=None):
    flat = np.random.default_rng(seed).permutation(np.prod(shape))[:n]
    return SignalSpec(subject=name, modality="fmri", units="a.u.", n_channels=n, n_times=1, affine=affine,
                      ijk=np.stack(np.unravel_index(flat, shape), axis=1), volume_shape=shape)


def filled(grid, placement, x):
    """Return the patches ``(F, T)`` of one trial's voxels ``(V,)``."""
    flat = np.zeros(grid.F * grid.T)
    flat[placement.places] = (x[placement.voxels] * placement.weights).sum(axis=1)
    return flat.reshape(grid.F, grid.T)


def test_patches_equal_a_loop_over_the_volume():
    one = spec("a", (7, 6, 5), 30)
    grid = VolumeGrid.of({"a": one}, patch=3)
    x = np.random.default_rng(1).standard_normal(30)
    volume = np.zeros((9, 6, 6))  # padded to whole patches
    for value, (i, j, k) in zip(x, one.ijk, strict=True):
        volume[i, j, k] = value
    expected, kept = [], []
    for number, (a, b, c) in enumerate(np.ndindex(3, 2, 2)):
        cube = volume[3 * a:3 * a + 3, 3 * b:3 * b + 3, 3 * c:3 * c + 3]
        if cube.any():
            kept.append(number)
            expected.append([cube[i, j, k] for i in range(3) for j in range(3) for k in range(3)])
    assert grid.kept == tuple(kept)
    assert (27, len(kept)) == (grid.F, grid.T)
    np.testing.assert_allclose(filled(grid, grid.placement(one), x), np.array(expected).T, rtol=1e-6)
    np.testing.assert_array_equal(grid.coordinates(), [np.unravel_index(n, (3, 2, 2)) for n in kept])


@pytest.mark.parametrize("common", [(6, 5, 7), (4, 7, 3), (9, 10, 11)])
def test_another_shape_is_resized_as_torch_does(common):
    first, other = spec("a", common, 20), spec("b", (5, 6, 6), 60, seed=1)
    grid = VolumeGrid.of({"a": first, "b": other}, patch=1)
    x = np.random.default_rng(2).standard_normal(60).astype(np.float32)
    volume = torch.zeros(1, 1, 5, 6, 6)
    volume[0, 0][tuple(torch.from_numpy(other.ijk.T))] = torch.from_numpy(x)
    expected = F.interpolate(volume, size=common, mode="trilinear", align_corners=False)[0, 0].numpy()
    got = np.zeros(np.prod(common))
    got[list(grid.kept)] = filled(grid, grid.placement(other), x)[0]
    np.testing.assert_allclose(got.reshape(common), expected, atol=1e-5)


def test_only_patches_of_some_subject_are_kept():
    a = dataclasses.replace(spec("a", (8, 8, 8), 1), ijk=np.array([[0, 0, 0]]))
    b = dataclasses.replace(spec("b", (8, 8, 8), 1), ijk=np.array([[7, 7, 7]]))
    assert VolumeGrid.of({"a": a}, patch=4).kept == (0,)
    both = VolumeGrid.of({"a": a, "b": b}, patch=4)
    assert both.kept == (0, 7)
    assert both.placement(a).left_out == 0
    assert VolumeGrid.of({"a": a, "b": b}, patch=4) == VolumeGrid.of({"b": b, "a": a}, patch=4)


def test_affines_bring_shifted_volumes_together():
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    first = spec("a", (8, 8, 8), 1, affine=affine)
    shifted = affine.copy()
    shifted[:3, 3] = [4.0, 0.0, -6.0]  # the second volume begins two voxels further along i and three before along k
    a = dataclasses.replace(first, ijk=np.array([[5, 4, 2]]))
    b = dataclasses.replace(first, subject="b", ijk=np.array([[3, 4, 5]]), affine=shifted)
    grid = VolumeGrid.of({"a": a, "b": b}, patch=2, align="affine")
    assert grid.T == 1
    for one in (a, b):
        np.testing.assert_allclose(filled(grid, grid.placement(one), np.array([1.5])),
                                   filled(grid, grid.placement(a), np.array([1.5])))


def test_messages():
    bare = SignalSpec(subject="x", modality="fmri", units="a.u.", n_channels=3, n_times=1)
    with pytest.raises(ValueError, match=r"voxels of subject 'x': expected their places in a volume, got no ijk and no "
                                         r"volume_shape\. .*study\.form=nifti"):
        VolumeGrid.of({"x": bare}, patch=2)
    with pytest.raises(ValueError, match="got no affine"):
        VolumeGrid.of({"a": spec("a", (4, 4, 4), 3)}, patch=2, align="affine")
    with pytest.raises(ValueError, match=r"expected ijk within the volume \(4, 4, 4\), got \(4, 0, 0\)"):
        VolumeGrid.of({"a": dataclasses.replace(spec("a", (4, 4, 4), 1), ijk=np.array([[4, 0, 0]]))}, patch=2)
    with pytest.raises(ValueError, match="expected at least one subject"):
        VolumeGrid.of({}, patch=2)
    with pytest.raises(ValueError, match=r"expected align of .* got 'mni'"):
        VolumeGrid.of({"a": spec("a", (4, 4, 4), 3)}, patch=2, align="mni")
    grid = VolumeGrid.of({"a": dataclasses.replace(spec("a", (8, 8, 8), 1), ijk=np.array([[0, 0, 0]]))}, patch=4)
    with pytest.raises(ValueError, match="expected some within the 1 patches of the model, got none"):
        grid.placement(dataclasses.replace(spec("b", (8, 8, 8), 1), ijk=np.array([[7, 7, 7]])))

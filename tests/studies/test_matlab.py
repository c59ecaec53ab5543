"""Variables of MATLAB files: version 7.3 (HDF5) gives what version 5 gives."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from nsd_raw import prepare, refused
from scipy.io import loadmat, savemat

from brain2img.data.prepared import PreparedStudy
from brain2img.studies.digit69 import Digit69
from brain2img.studies.matlab import read_matlab

RNG = np.random.default_rng(0)
VALUES = {"x": RNG.normal(size=(3, 4)), "n": np.arange(6, dtype=np.int16).reshape(1, 6), "one": np.array([[2.5]]),
          "cube": RNG.normal(size=(2, 3, 4)), "flags": np.array([[True, False]])}


def save_73(path, values):
    """Write as MATLAB does with -v7.3: a block of 512 bytes, axes in reverse order, the class beside."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in values.items():
            if isinstance(value, str):
                file[name] = np.array([[ord(letter)] for letter in value], dtype=np.uint16)
                file[name].attrs["MATLAB_class"] = np.bytes_("char")
                continue
            file[name] = value.T.astype(np.uint8) if value.dtype == bool else value.T
            file[name].attrs["MATLAB_class"] = np.bytes_("logical" if value.dtype == bool else value.dtype.name)
    with path.open("rb+") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Mon Jan 1".ljust(512, b" "))


@pytest.mark.parametrize("version", ["5", "7.3"])
def test_arrays(tmp_path, version):
    path = tmp_path / "x.mat"
    save_73(path, VALUES) if version == "7.3" else savemat(path, VALUES)
    found = read_matlab(path, names=tuple(VALUES), source="Give it.")
    assert set(found) == set(VALUES)
    for name, value in VALUES.items():
        np.testing.assert_array_equal(found[name], value)
    with pytest.raises(ValueError, match=r"x.mat: expected the variables x, y, got no y but .*cube.*Give it."):
        read_matlab(path, names=("x", "y"), source="Give it.")


@pytest.mark.parametrize("version", ["5", "7.3"])
def test_text_is_no_array_of_numbers(tmp_path, version):
    path = tmp_path / "x.mat"
    save_73(path, {"x": "abc"}) if version == "7.3" else savemat(path, {"x": "abc"})
    with pytest.raises(ValueError, match=r"x.mat: expected an array of numbers in x, got ndarray of <U"):
        read_matlab(path, names=("x",), source="Give it.")


@pytest.mark.parametrize("keep", [0, 300, 3000])
def test_truncated_files(tmp_path, keep):
    path = tmp_path / "x.mat"
    save_73(path, VALUES)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"x.mat: expected a whole MATLAB file, got an? (empty|truncated or damaged)"):
        read_matlab(path, names=("x",), source="Give it.")


def digits():
    values = {}
    for part, n in (("Trn", 6), ("Test", 4)):
        values |= {f"fmri{part}": RNG.normal(size=(n, 5)), f"label{part}": RNG.integers(1, 3, (n, 1)).astype(float),
                   f"stim{part}": RNG.integers(0, 256, (n, 16)).astype(np.uint8)}
    return values


def test_digits_of_either_version(tmp_path):
    values, studies = digits(), []
    for name, save in (("v5", savemat), ("v73", save_73)):
        (tmp_path / name).mkdir()
        save(tmp_path / f"{name}.mat", values)
        Digit69().prepare(tmp_path / f"{name}.mat", tmp_path / name)
        studies.append(PreparedStudy(tmp_path / name, finished=False))
    one, other = studies
    np.testing.assert_array_equal(one.signals("sub-01")[:, :, 0], np.concatenate(
        [values["fmriTrn"], values["fmriTest"]]).astype(np.float32))
    np.testing.assert_array_equal(other.signals("sub-01"), one.signals("sub-01"))
    np.testing.assert_array_equal(other.stimuli.images(), one.stimuli.images())
    assert other.stimulus_table["concept"].tolist() == one.stimulus_table["concept"].tolist()


def test_a_design_of_version_73(nsd_copy, nsd_folder, tmp_path):
    raw = nsd_copy(".hdf5")
    path = raw / "nsddata/experiments/nsd/nsd_expdesign.mat"
    values = {name: value for name, value in loadmat(path).items() if not name.startswith("__")}
    path.unlink()
    save_73(path, values)
    before, after = (prepare(folder, tmp_path / name, subjects=[1])
                     for folder, name in ((nsd_folder(".hdf5"), "before"), (raw, "after")))
    assert after.trials.equals(before.trials)
    np.testing.assert_array_equal(after.signals("subj01"), before.signals("subj01"))
    path.write_bytes(b"<!DOCTYPE html><title>Not found</title>")
    refused(raw, tmp_path / "out", r"nsd_expdesign.mat: expected a whole MATLAB file, got a web page .*Not found")

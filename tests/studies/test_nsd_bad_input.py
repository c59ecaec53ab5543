"""NSD: what is missing, damaged, contradictory or hostile is named, and nothing half-prepared is left."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from nsd_raw import SUBJECTS, prepare, refused, replace, rewrite_nifti, session_file
from scipy.io import loadmat, savemat

from brain2img.simulate import nsd_files as write
from brain2img.studies.nsd import NSD


@pytest.mark.parametrize("number", [2, 5])
def test_missing_session(nsd_copy, tmp_path, number):
    raw = nsd_copy(".nii.gz")
    session_file(raw, number).unlink()
    message = rf"betas_session0{number}.nii.gz: expected the 5 sessions of subj01, got no such file .*'early'"
    refused(raw, tmp_path / "out", message)
    with pytest.raises(ValueError, match=message):
        NSD(subjects=SUBJECTS).raw_id(raw)


@pytest.mark.parametrize(("suffix", "keep"), [(".nii.gz", 0.6), (".nii.gz", 0.001), (".nii", 0.6), (".nii", 0.001),
                                              (".hdf5", 0.6), (".hdf5", 0.001)])
def test_truncated_session(nsd_copy, tmp_path, suffix, keep):
    raw = nsd_copy(suffix)
    path = session_file(raw, suffix=suffix)
    replace(path, path.read_bytes()[:int(keep * path.stat().st_size)])
    refused(raw, tmp_path / "out", rf"betas_session02\{suffix}: expected a whole .* truncated or damaged")
    assert not list((tmp_path / "out").glob("signals*"))


def test_flipped_bit(nsd_copy, tmp_path):
    raw = nsd_copy(".nii.gz")
    path = session_file(raw)
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # the check sum behind the last volume
    replace(path, bytes(content))
    refused(raw, tmp_path / "out", r"betas_session02.nii.gz: expected a whole NIfTI file.*CRC")


@pytest.mark.parametrize(("change", "dtype", "message"), [
    (lambda x: x[..., :-1], np.int16, "expected 12 trials by nsd_expdesign.mat, got 11"),
    (lambda x: x[:-1], np.int16, r"expected the voxels of .*, \(35, 29, 14\) RAS .*, got \(34, 29, 14\) RAS"),
    (lambda x: x / 300, np.float32, r"expected int16 \(percent signal change x 300\), got float32"),
])
def test_session_that_does_not_fit(nsd_copy, tmp_path, change, dtype, message):
    raw = nsd_copy(".nii.gz")
    rewrite_nifti(session_file(raw, 3), change, dtype)
    refused(raw, tmp_path / "out", f"betas_session03.nii.gz: {message}")
    assert not list((tmp_path / "out").glob("*signals*"))  # found before anything is written


def test_wrong_hdf5(nsd_copy, tmp_path):
    raw = nsd_copy(".hdf5")
    path = session_file(raw, suffix=".hdf5")
    path.unlink()
    with h5py.File(path, "w") as file:
        file["data"] = np.zeros(3)
    refused(raw, tmp_path / "out", r"betas_session02.hdf5: expected a whole HDF5 file with the data set 'betas'")


@pytest.mark.parametrize(("name", "message"), [
    ("roi/nsdgeneral.nii.gz", r"nsdgeneral.nii.gz: expected the voxels of .*betas_session01.nii.gz, \(35, 29"),
    ("roi/prf-visualrois.nii.gz", r"prf-visualrois.nii.gz: expected the voxels of .*\(35, 29, 14\) RAS .*got \(34, 29"),
])
def test_mask_that_does_not_fit(nsd_copy, tmp_path, name, message):
    raw = nsd_copy(".nii.gz")
    rewrite_nifti(raw / "nsddata/ppdata/subj01/func1pt8mm" / name, lambda x: x[:-1])
    refused(raw, tmp_path / "out", message,
            voxels="nsdgeneral" if name == "roi/nsdgeneral.nii.gz" else "nsdgeneral:prf-visualrois")


def test_regions(nsd_copy, tmp_path):
    raw = nsd_copy(".nii.gz")
    volume = raw / "nsddata/ppdata/subj04/func1pt8mm/roi/nsdgeneral.nii.gz"
    whole = volume.read_bytes()
    replace(volume, whole[:len(whole) // 2])
    refused(raw, tmp_path / "out", "roi/nsdgeneral.nii.gz: expected a whole NIfTI volume, got a truncated or damaged")
    replace(volume, whole)
    refused(raw, tmp_path / "out", r"roi/streams.nii.gz: expected it in .*study.voxels", voxels="streams")
    table = raw / "nsddata/freesurfer/subj01/label/prf-visualrois.mgz.ctab"
    replace(table, b"0 Unknown\n1 V1\n2 V2\n3 V3\n")
    refused(raw, tmp_path / "out", "prf-visualrois of subj01: expected the 4 labels of its table, got 4",
            voxels="prf-visualrois")
    replace(table, b"V1\n")
    refused(raw, tmp_path / "out", "mgz.ctab: expected lines of a number and a name", voxels="prf-visualrois")
    table.unlink()
    refused(raw, tmp_path / "out", "prf-visualrois.mgz.ctab: expected it", voxels="prf-visualrois")
    rewrite_nifti(raw / "nsddata/ppdata/subj01/func1pt8mm/roi/nsdgeneral.nii.gz", np.zeros_like)
    refused(raw, tmp_path / "out", "nsdgeneral.nii.gz: expected voxels above 0, got none")


@pytest.mark.parametrize(("change", "message"), [
    (lambda v: v.pop("sharedix"), "expected the variables .*, got no sharedix"),
    (lambda v: v["subjectim"].__setitem__((3, 0), v["subjectim"][3, -1]),
     "expected the pictures of sharedix at the head of every subject's subjectim, got others for subj04"),
    (lambda v: v.update(masterordering=v["masterordering"][:, :-1]), "expected a picture of 20 for each of 60 shown"),
    (lambda v: v["masterordering"].__setitem__((0, 7), 0), "expected a picture of 20 for each of 60 .*, or others"),
    (lambda v: v.update(subjectim=v["subjectim"][:4]), r"expected the pictures of 8 subjects .* got \(4, 20\) and"),
])
def test_design_that_contradicts_itself(nsd_copy, tmp_path, change, message):
    raw = nsd_copy(".nii.gz")
    path = raw / "nsddata/experiments/nsd/nsd_expdesign.mat"
    values = {k: v for k, v in loadmat(path).items() if not k.startswith("__")}
    change(values)
    path.unlink()
    savemat(path, values)
    refused(raw, tmp_path / "out", f"nsd_expdesign.mat: {message}")


def test_damaged_design_and_too_few_pictures(nsd_sim, nsd_copy, tmp_path):
    raw = nsd_copy(".nii.gz")
    stimuli = raw / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
    stimuli.unlink()
    refused(raw, tmp_path / "out", "nsd_stimuli.hdf5: expected it in")
    with h5py.File(stimuli, "w") as file:
        file["imgBrick"] = np.zeros((5, 64, 64, 3), np.uint8)
    refused(raw, tmp_path / "out", r"nsd_stimuli.hdf5: expected at least \d+ pictures in 'imgBrick' by the trials")
    replace(stimuli, stimuli.read_bytes()[:-1000])
    refused(raw, tmp_path / "out", "nsd_stimuli.hdf5: expected a whole HDF5 file with the data set 'imgBrick'")
    replace(raw / "nsddata/experiments/nsd/nsd_expdesign.mat", b"MATLAB 5.0 or not")
    refused(raw, tmp_path / "out", "nsd_expdesign.mat: expected a whole MATLAB file")


class Hostile:
    def __reduce__(self):
        return (os.system, ("touch hostile",))


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def test_pickles_are_not_opened(nsd_sim, nsd_copy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hostile = npy(np.array([Hostile()], dtype=object))
    raw = nsd_copy(".nii.gz")
    (raw / "COCO_73k_annots_curated.npy").write_bytes(hostile)
    refused(raw, tmp_path / "out", "COCO_73k_annots_curated.npy: expected a whole array of .* got pickled objects")
    shutil.rmtree(raw)
    raw = nsd_copy("averaged")
    path = raw / "webdataset_avg_split/train/train_subj01_1.tar"
    change_tar(path, lambda name, data: (name, hostile if name.endswith("nsdgeneral.npy") else data))
    refused(raw, tmp_path / "out", r"train_subj01_1.tar: expected a whole plain array in sample\d+.nsdgeneral.npy, "
                                   r"got pickled objects", shared=982)
    assert not (tmp_path / "hostile").exists()


def change_tar(path, change):
    with tarfile.open(path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar.getmembers()]
    path.unlink()
    with tarfile.open(path, "w") as tar:
        for changed in (change(name, data) for name, data in members):
            if changed is not None:
                name, data = changed
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize(("form", "name"), [("averaged", "webdataset_avg_split/train/train_subj01_0.tar"),
                                            ("all_betas", "wds/subj01/train/3.tar")])
def test_tars(nsd_copy, tmp_path, form, name):
    raw = nsd_copy(form)
    path = raw / name
    what = {"shared": 982 if form == "averaged" else 1000}
    content = path.read_bytes()
    for keep in (0.5, 512 * (len(content) // 1024) / len(content)):
        replace(path, content[:int(keep * len(content))])
        refused(raw, tmp_path / "out", rf"{path.name}: expected a whole tar", **what)
    replace(path, content[:len(content) // 1024 * 512 + 100] + bytes(2048))
    refused(raw, tmp_path / "out", rf"{path.name}: expected a whole tar", **what)
    replace(path, content)
    with tarfile.open(path) as tar:
        first = tar.getnames()[0].split(".")[0]
    change_tar(path, lambda member, data: (member, data) if member.startswith(first) else None)  # one sample is left
    refused(raw, tmp_path / "out", "expected 9 pictures of subj01 by metadata_subj01.json, got 5" if form == "averaged"
            else r"betas_all_subj01_fp32_renorm.hdf5: expected a trial in the tars for each of 60 rows, got", **what)
    for hostile in ("../escaped.npy", "/tmp/escaped.npy", "a/../../b.npy"):
        replace(path, content)
        change_tar(path, lambda member, data, hostile=hostile: (hostile, data))
        refused(raw, tmp_path / "out", rf"{path.name}: expected members that stay in their folder, got", **what)
    path.unlink()
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("sample.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    refused(raw, tmp_path / "out", rf"{path.name}: expected plain files, got 'sample.jpg', a link", **what)
    path.unlink()
    refused(raw, tmp_path / "out", rf"{path.name}: expected every tar up to number \d+, got no such file", **what)


def test_averaged_that_contradicts_itself(nsd_sim, nsd_copy, tmp_path):
    raw = nsd_copy("averaged")
    root = raw / "webdataset_avg_split"
    refused(raw, tmp_path / "out", "expected shared=982 of all sessions there are", shared=1000)
    refused(raw, tmp_path / "out", "expected voxels 'nsdgeneral', which is all", shared=982, voxels="streams")
    write.write_design(nsd_sim, raw)
    study = prepare(raw, tmp_path / "fits", shared=982)
    assert len(study.trials)
    design = raw / "nsddata/experiments/nsd/nsd_expdesign.mat"
    values = {k: v for k, v in loadmat(design).items() if not k.startswith("__")}
    values["subjectim"][0, nsd_sim.n_shared:], values["subjectim"][1, nsd_sim.n_shared:] = (
        values["subjectim"][1, nsd_sim.n_shared:].copy(), values["subjectim"][0, nsd_sim.n_shared:].copy())
    design.unlink()
    savemat(design, values)
    refused(raw, tmp_path / "out", r"nsd_expdesign.mat: expected the pictures of subj01 .* got nsd\d+ in the split 'tr",
            shared=982)
    design.unlink()
    totals = root / "metadata_subj01.json"
    replace(totals, json.dumps({"totals": {"train": 77}}).encode())
    refused(raw, tmp_path / "out", "train: expected 77 pictures of subj01 by metadata_subj01.json, got", shared=982)
    totals.unlink()
    path = root / "train/train_subj01_0.tar"
    whole = path.read_bytes()
    for change, message in [
            (lambda n, d: (n, npy(np.zeros((3, 5), np.float32)) if "nsdgeneral" in n else d),
             "expected one number of voxels for subj01, got 5 and 21"),
            (lambda n, d: None if "coco73k" in n else (n, d), "expected coco73k.npy in every sample, got jpg"),
            (lambda n, d: (n, d[:40] if n.endswith("jpg") else d), "expected a whole picture in sample"),
            (lambda n, d: (n, npy(np.array([int(nsd_sim.shared_early[0])])) if "coco73k" in n else d),
             "expected every picture of subj01 in one split, got number")]:
        replace(path, whole)
        change_tar(path, change)
        refused(raw, tmp_path / "out", message, shared=982)


def test_all_betas_that_contradict_themselves(nsd_sim, nsd_copy, tmp_path):
    raw = nsd_copy("all_betas")
    last = raw / "wds/subj01/train/4.tar"
    whole = last.read_bytes()
    last.unlink()
    refused(raw, tmp_path / "out", "train: expected the tars of 5 sessions by .*0.tar, got 4")
    assert prepare(raw, tmp_path / "four", sessions=4, subjects=[1]).trials["session"].max() == 4
    last.write_bytes(whole)

    def altered(column, value):
        def change(name, data):
            row = np.load(io.BytesIO(data))
            row[0, column] = value
            return name, npy(row)
        return change

    for column, value, message in [(1, 2, "expected trials of subj01 with own pictures, got subject 2"),
                                   (16, 1, "expected trials of subj01 with own pictures, got subject 1 and a shared"),
                                   (5, 0, "expected a row of its own for every trial"),
                                   (5, 999, "expected a row of its own for every trial")]:
        replace(last, whole)
        change_tar(last, altered(column, value))
        refused(raw, tmp_path / "out", message)
    replace(last, whole)
    write.write_design(nsd_sim, raw)
    assert len(prepare(raw, tmp_path / "fits").trials)
    design = raw / "nsddata/experiments/nsd/nsd_expdesign.mat"
    values = {k: v for k, v in loadmat(design).items() if not k.startswith("__")}
    values["masterordering"] = values["masterordering"][:, ::-1]
    savemat(design, values)
    refused(raw, tmp_path / "out", r"nsd_expdesign.mat: expected the pictures of subj01 by this design, got nsd\d+ in")
    design.unlink()
    betas = raw / "betas_all_subj01_fp32_renorm.hdf5"
    content = betas.read_bytes()
    replace(betas, content[:len(content) // 2])
    refused(raw, tmp_path / "out", "betas_all_subj01_fp32_renorm.hdf5: expected a whole HDF5 file")
    betas.unlink()
    refused(raw, tmp_path / "out", r"betas_all_subj01\*.hdf5: expected one file, got none")
    (raw / "coco_images_224_float16.hdf5").unlink()
    refused(raw, tmp_path / "out", "coco_images_224_float16.hdf5: expected it in", subjects=[4])


def test_which_form_lies_there(nsd_sim, nsd_copy, tmp_path):
    raw = nsd_copy(".nii.gz")
    refused(raw, tmp_path / "out", "another version of the betas is chosen with study.betas", betas="betas_fithrf")
    write.write_all_betas(nsd_sim, raw)
    refused(raw, tmp_path / "out", "expected one form of the data, got nifti and all_betas. Choose one with study.form")
    assert len(prepare(raw, tmp_path / "out", form="nifti").trials)
    other = Path(next(raw.glob("nsddata_betas/ppdata/subj01/*/*")))
    other.rename(other.with_name("betas_fithrf"))
    study = prepare(raw, tmp_path / "b2", form="nifti", betas="betas_fithrf", subjects=[1])
    assert "(b2)" in study.specs["subj01"].filtered
    for nothing in (None, tmp_path / "nowhere"):
        refused(nothing, tmp_path / "none", r"raw: expected the folder of the Natural Scenes Dataset, got")


@pytest.mark.parametrize(("arguments", "message"), [
    ({"subjects": [9]}, r"expected subjects of 1 to 8, got \[9\]. Set study.subjects"),
    ({"form": "nii"}, "expected form of .*, got 'nii'. Set study.form"),
    ({"shared": 907}, r"expected shared of \(1000, 982\), got 907. Set study.shared"),
    ({"sessions": "some"}, "expected sessions 'all', 'early' or a number, got 'some'. Set study.sessions"),
    ({"val_fraction": 1.0}, "expected a val_fraction of 0 to 1, got 1.0. Set study.val_fraction"),
])
def test_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        NSD(**arguments)

"""NSD: every layout that people have, written with a known answer, prepared, and compared; and what is refused."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pandas as pd
import pytest
from scipy.io import loadmat, savemat

from brain2img.data.prepared import PreparedStudy
from brain2img.data.simulate import nsd as simulated
from brain2img.data.simulate import nsd_files as write
from brain2img.studies import nsd_design
from brain2img.studies.nsd import NSD
from brain2img.studies.nsd_design import Design
from brain2img.studies.nsd_files import BetaSession, Voxels

SUBJECTS = (1, 4)
ROUNDING = 0.5 / 300 + 1e-6


@pytest.fixture(scope="module")
def sim():
    return simulated.SimulatedNSD(subjects=SUBJECTS)


@pytest.fixture(scope="module")
def sources(sim, tmp_path_factory):
    """Return a function that gives the folder of a form, written once."""
    root = tmp_path_factory.mktemp("nsd")
    writers = {
        ".nii.gz": lambda folder: write.write_published(sim, folder),
        ".nii": lambda folder: write.write_published(sim, folder, suffix=".nii"),
        ".hdf5": lambda folder: write.write_published(sim, folder, suffix=".hdf5"),
        "contiguous": lambda folder: write.write_published(sim, folder, suffix=".hdf5", chunks=None),
        "averaged": lambda folder: write.write_averaged(sim, folder),
        "unpacked": lambda folder: write.write_averaged(sim, folder, extracted=True),
        "all_betas": lambda folder: (write.write_all_betas(sim, folder), write.write_coco_images(sim, folder)),
    }

    def folder_of(form):
        folder = root / form
        if not folder.exists():
            folder.mkdir()
            writers[form](folder)
        return folder

    return folder_of


@pytest.fixture
def source(sources, tmp_path):
    """Return a function that gives a copy of a form's folder, whose files may be replaced (not written into)."""
    def copy(form):
        return Path(shutil.copytree(sources(form), tmp_path / "raw", copy_function=os.link))

    return copy


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


# ---- forms ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("form", [".nii.gz", ".nii", ".hdf5", "contiguous"])
def test_published(sim, sources, tmp_path, form):
    study = prepare(sources(form), tmp_path / "out", image_size=None)
    assert study.subjects == ["subj01", "subj04"]
    for subject in SUBJECTS:
        trials, betas = known(sim, subject)
        spec, _ = sim.recording(subject)
        found = study.trials_of(f"subj{subject:02d}")
        assert found["stimulus_id"].tolist() == names(trials["image"])
        for column in ("session", "run", "onset", "repetition"):
            assert found[column].tolist() == trials[column].tolist(), column
        assert (found["duration"] == 3).all()
        signals = study.signals(f"subj{subject:02d}")[:, :, 0]
        np.testing.assert_allclose(signals, betas, atol=ROUNDING)
        np.testing.assert_array_equal(signals, (np.rint(300 * betas).astype(np.float32) / 300))
        prepared = study.specs[f"subj{subject:02d}"]
        np.testing.assert_array_equal(prepared.ijk, spec.ijk)
        np.testing.assert_allclose(prepared.affine, spec.affine)
        assert prepared.volume_shape == spec.volume_shape
        assert (prepared.units, prepared.whitened) == ("percent signal change", False)
        assert "GLMdenoise" in prepared.filtered
    rows = [int(name[3:]) - 1 for name in study.stimulus_table["stimulus_id"]]
    assert rows == list(dict.fromkeys(n for s in SUBJECTS for n in sim.trials(s)["image"]))
    np.testing.assert_array_equal(study.stimuli.images(), [sim.image(row) for row in rows])
    assert study.stimuli.images([3]).shape == (1, 64, 64, 3)


def test_sessions_and_trials_of_subjects_differ(sim, sources, tmp_path):
    study = prepare(sources(".nii.gz"), tmp_path / "out")
    assert {s: study.trials_of(s)["session"].nunique() for s in study.subjects} == {"subj01": 5, "subj04": 3}
    whole, part = (study.trials_of(s).groupby("stimulus_id").size() for s in study.subjects)
    assert (whole == 3).all()
    assert set(part) == {1, 2, 3}
    assert study.stimuli.images([0]).shape == (1, 256, 256, 3)  # brought to image_size when read
    assert (nsd_design.SESSIONS, nsd_design.HELD_BACK) == (simulated.SESSIONS, simulated.HELD_BACK)


def test_chunks_of_trials_and_of_voxels_give_the_same(tmp_path):
    rng = np.random.default_rng(0)
    volumes = rng.integers(-900, 900, (30, 4, 5, 6)).astype(np.int16)  # trials, x, y, z
    mask = rng.random((4, 5, 6)) < 0.3
    voxels = Voxels(np.argwhere(mask), np.eye(4), mask.shape, ("",) * int(mask.sum()))
    places = np.array([0, 3, 4, 17, 29])
    for number, chunks in enumerate([None, (30, 1, 1, 1), (30, 4, 2, 3), (7, 6, 5, 4), (1, 6, 5, 4), (30, 6, 5, 4)]):
        path = tmp_path / f"{number}.hdf5"
        with h5py.File(path, "w") as file:
            file.create_dataset("betas", data=volumes.transpose(0, 3, 2, 1), chunks=chunks)
        session = BetaSession(path, voxels, places)
        session.check(n_trials=30)
        got = np.concatenate(list(session()))[:, :, 0]
        np.testing.assert_array_equal(got, volumes[:, mask][places].astype(np.float32) / 300)


@pytest.mark.parametrize("form", ["averaged", "unpacked"])
def test_averaged(sim, sources, tmp_path, form):
    study = prepare(sources(form), tmp_path / "out", shared=982)
    for subject in SUBJECTS:
        name = f"subj{subject:02d}"
        trials = sim.trials(subject).iloc[:sim.early_sessions(subject) * sim.per_session]
        betas = sim.standardised(subject)
        found = study.trials_of(name)
        assert set(found.loc[found["split"] == "test", "stimulus_id"]) == set(names(
            set(trials["image"]) & set(sim.shared)))
        assert {"train", "val", "test"} == set(found["split"])
        # A repetition that only fills up is no trial.
        assert len(found) == len(trials)
        assert found.groupby("stimulus_id").size().to_dict() == trials.groupby("image").size().rename(
            index=dict(zip(trials["image"], names(trials["image"]), strict=True))).to_dict()
        for row, line in found.iterrows():
            place = trials.index[trials["image"] == int(line["stimulus_id"][3:]) - 1][line["repetition"]]
            np.testing.assert_allclose(study.signals(name)[row, :, 0], betas[place], rtol=1e-6)
        assert (found["session"] == "all").all()
        spec = study.specs[name]
        assert spec.units == "a.u."
        assert "z-scored" in spec.filtered
        assert spec.ijk is None
    rows = [int(name[3:]) - 1 for name in study.stimulus_table["stimulus_id"]]
    assert set(study.stimulus_table["file"]) == {"images.npy"}
    difference = study.stimuli.images().astype(int) - np.array([sim.image(row) for row in rows])
    assert np.abs(difference).mean() < 2  # JPEG


@pytest.mark.parametrize(("shared", "pictures"), [(1000, "float16"), (982, "nsd_stimuli")])
def test_all_betas(sim, source, tmp_path, shared, pictures):
    raw = source("all_betas")
    if pictures == "nsd_stimuli":
        write.write_pictures(sim, raw)
    study = prepare(raw, tmp_path / "out", shared=shared, image_size=None)
    for subject in SUBJECTS:
        trials, _ = known(sim, subject)
        is_shared = trials["image"].isin(sim.shared)
        early = trials["image"].isin(sim.shared_early) & (trials["session"] <= sim.early_sessions(subject))
        keep = ~is_shared | (is_shared if shared == 1000 else early)
        found = study.trials_of(f"subj{subject:02d}")
        assert found["stimulus_id"].tolist() == names(trials.loc[keep, "image"])
        assert found["session"].tolist() == trials.loc[keep, "session"].tolist()
        assert found["run"].tolist() == trials.loc[keep, "run"].tolist()
        assert ((found["split"] == "test") == is_shared[keep].to_numpy()).all()
        np.testing.assert_allclose(study.signals(f"subj{subject:02d}")[:, :, 0], sim.standardised(subject)[keep],
                                   rtol=1e-6)
    rows = [int(name[3:]) - 1 for name in study.stimulus_table["stimulus_id"]]
    np.testing.assert_array_equal(study.stimuli.images(), [sim.image(row) for row in rows])
    assert study.stimulus_table["file"].iloc[0].endswith("imgBrick" if pictures == "nsd_stimuli" else "images.npy")


# ---- voxels, splits, captions ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("voxels", ["prf-visualrois", "nsdgeneral:prf-visualrois", "brain", "brain:prf-visualrois"])
def test_voxels(sim, sources, tmp_path, voxels):
    study = prepare(sources(".nii.gz"), tmp_path / "out", voxels=voxels, subjects=[1])
    spec, _ = sim.recording(1)
    masks = sim.masks(1)
    areas = dict(zip(map(tuple, spec.ijk), spec.rois, strict=True))
    prepared = study.specs["subj01"]
    early = ("V1", "V2", "V3", "hV4")
    expected = {"prf-visualrois": (masks["responding"] > 0) & (masks["responding"] <= 4), "brain": masks["brain"],
                "nsdgeneral": masks["nsdgeneral"]}[voxels.split(":")[0]]
    np.testing.assert_array_equal(prepared.ijk, np.argwhere(expected))
    if voxels == "brain":
        assert set(prepared.rois) == {f"area{n}" for n in range(1, 9)}
    else:
        assert list(prepared.rois) == [areas.get(tuple(at), "") if areas.get(tuple(at)) in early else ""
                                       for at in prepared.ijk]
    volumes = np.concatenate([[v[expected] for v in sim.volumes(1, session)] for session in range(1, 6)])
    np.testing.assert_array_equal(study.signals("subj01")[:, :, 0], volumes.astype(np.float32) / 300)


def test_brain_leaves_out_what_a_session_did_not_cover(sim, source, tmp_path):
    raw = source(".nii.gz")
    valid = sim.masks(1)["brain"].astype(np.uint8)
    gone = np.argwhere(valid)[7]
    valid[tuple(gone)] = 0
    nibabel.save(nibabel.Nifti1Image(valid, np.eye(4)),
                 raw / "nsddata/ppdata/subj01/func1pt8mm/valid_session02.nii.gz")
    prepared = prepare(raw, tmp_path / "out", voxels="brain", subjects=[1], sessions=1).specs["subj01"]
    assert prepared.n_channels == valid.sum()
    assert not (prepared.ijk == gone).all(axis=1).any()


def test_noise_ceiling(sim, sources, tmp_path):
    study = prepare(sources(".nii.gz"), tmp_path / "out")
    for name, subject in zip(study.subjects, SUBJECTS, strict=True):
        trials = sim.trials(subject)
        share = (1 / trials[trials["image"].isin(sim.shared)].groupby("image").size()).mean()
        np.testing.assert_allclose(study.specs[name].noise_ceiling, sim.snr**2 / (sim.snr**2 + share), rtol=1e-6)


@pytest.mark.parametrize("shared", [1000, 982])
def test_splits(sim, sources, tmp_path, shared):
    study = prepare(sources(".nii.gz"), tmp_path / "out", shared=shared)
    test = sim.shared if shared == 1000 else sim.shared_early
    assert 0 < len(sim.shared_early) < len(sim.shared)
    for name, subject in zip(study.subjects, SUBJECTS, strict=True):
        trials = sim.trials(subject)
        found = study.trials_of(name)
        used = trials[~trials["image"].isin(sim.shared) | trials["image"].isin(test)]
        assert found["stimulus_id"].tolist() == names(used["image"])
        assert ((found["split"] == "test") == used["image"].isin(test).to_numpy()).all()
        assert set(found["split"]) == {"train", "val", "test"}
        betas = sim.recording(subject)[1][used.index]
        np.testing.assert_allclose(study.signals(name)[:, :, 0], betas, atol=ROUNDING)


def test_validation_depends_on_picture_and_seed_alone(sources, tmp_path):
    raw = sources(".nii.gz")
    studies = [prepare(raw, tmp_path / str(i), **changes) for i, changes in enumerate(
        [{}, {"subjects": [4]}, {"sessions": 2, "shared": 982}, {"seed": 1}])]
    validation = [set(s.trials.loc[s.trials["split"] == "val", "stimulus_id"]) for s in studies]
    seen = [set(s.trials["stimulus_id"]) for s in studies]
    assert validation[1] == validation[0] & seen[1]
    assert validation[2] == validation[0] & seen[2]
    assert validation[3] != validation[0]


@pytest.mark.parametrize(("sessions", "there"), [("early", [2, 1]), (4, [4, 3]), (1, [1, 1])])
def test_fewer_sessions(source, tmp_path, sessions, there):
    raw = source(".nii.gz")
    for name, n in zip(("subj01", "subj04"), there, strict=True):
        for path in raw.glob(f"nsddata_betas/ppdata/{name}/*/*/betas_session*"):
            if int(path.name[13:15]) > n:
                path.unlink()
    study = prepare(raw, tmp_path / "out", sessions=sessions)
    assert [study.trials_of(s)["session"].max() for s in study.subjects] == there


@pytest.mark.parametrize("kind", ["coco", "curated", "both", "none"])
def test_captions(sim, source, tmp_path, kind):
    raw = source(".nii.gz")
    if kind in ("coco", "both"):
        write.write_captions(sim, raw)
    if kind in ("curated", "both"):
        write.write_captions(sim, raw, curated=True)
    table = prepare(raw, tmp_path / "out", subjects=[1], sessions=1).stimulus_table
    rows = [int(name[3:]) - 1 for name in table["stimulus_id"]]
    assert table["captions"].tolist() == [[] if kind == "none" else list(sim.scene(row).captions) for row in rows]
    assert table["attributes"].tolist() == [{"coco_id": 1000 + 7 * row} if kind in ("coco", "both") else {}
                                            for row in rows]


def test_the_id_of_raw_files_does_not_depend_on_where_they_lie(sources, source):
    study = NSD(subjects=SUBJECTS)
    assert study.raw_id(source(".nii.gz")) == study.raw_id(sources(".nii.gz"))
    assert study.raw_id(sources(".nii.gz")) != study.raw_id(sources(".hdf5"))


def test_counts_of_the_whole_design(tmp_path):
    rng = np.random.default_rng(0)
    images = np.concatenate([np.tile(np.arange(1000), (8, 1)), np.arange(1000, 73000).reshape(8, 9000)], axis=1)
    pattern = np.zeros((40, 12, 75))
    pattern[:, ::2, :63] = pattern[:, 1::2, :62] = 1
    values = {"masterordering": rng.permutation(np.repeat(np.arange(10000), 3))[None] + 1, "subjectim": images + 1,
              "sharedix": np.arange(1000)[None] + 1, "stimpattern": pattern}
    savemat(tmp_path / "nsd_expdesign.mat", values, do_compression=True)
    with pytest.raises(ValueError, match=r"nsd_expdesign.mat: expected .*1985\) .* in the first 27 sessions, as publ"):
        Design.read(tmp_path / "nsd_expdesign.mat")


# ---- continuing -----------------------------------------------------------------------------------------------------

def test_an_interrupted_call_goes_on_with_its_session(sources, tmp_path, monkeypatch):
    whole = prepare(sources(".nii.gz"), tmp_path / "whole")
    real, read = BetaSession.__call__, []

    def dies(self):
        read.append(self.path.name)
        if self.path.name.startswith("betas_session03"):
            yield from list(real(self))[:0]
            raise KeyboardInterrupt
        yield from real(self)

    with monkeypatch.context() as patch:
        patch.setattr(BetaSession, "__call__", dies)
        with pytest.raises(KeyboardInterrupt):
            prepare(sources(".nii.gz"), tmp_path / "out")
    assert not (tmp_path / "out" / "spec.json").exists()
    read.clear()
    monkeypatch.setattr(BetaSession, "__call__", lambda self: (read.append(self.path.name), *real(self))[1:])
    study = prepare(sources(".nii.gz"), tmp_path / "out")
    assert read == [f"betas_session{n:02d}.nii.gz" for n in (3, 4, 5, 1, 2, 3)]
    for name in study.subjects:
        np.testing.assert_array_equal(study.signals(name), whole.signals(name))
    pd.testing.assert_frame_equal(study.trials, whole.trials)


def test_sessions_in_processes_of_their_own(sources, tmp_path):
    one = prepare(sources(".hdf5"), tmp_path / "one", subjects=[1], sessions=2, shared=982)
    two = prepare(sources(".hdf5"), tmp_path / "two", subjects=[1], sessions=2, shared=982, jobs=2)
    np.testing.assert_array_equal(two.signals("subj01"), one.signals("subj01"))


# ---- bad input ------------------------------------------------------------------------------------------------------

def session_file(raw, number=2, suffix=".nii.gz", subject=1):
    return next(raw.glob(f"nsddata_betas/ppdata/subj{subject:02d}/*/*/betas_session{number:02d}{suffix}"))


@pytest.mark.parametrize("number", [2, 5])
def test_missing_session(source, tmp_path, number):
    raw = source(".nii.gz")
    session_file(raw, number).unlink()
    message = rf"betas_session0{number}.nii.gz: expected the 5 sessions of subj01, got no such file .*'early'"
    refused(raw, tmp_path / "out", message)
    with pytest.raises(ValueError, match=message):
        NSD(subjects=SUBJECTS).raw_id(raw)


@pytest.mark.parametrize(("suffix", "keep"), [(".nii.gz", 0.6), (".nii.gz", 0.001), (".nii", 0.6), (".nii", 0.001),
                                              (".hdf5", 0.6), (".hdf5", 0.001)])
def test_truncated_session(source, tmp_path, suffix, keep):
    raw = source(suffix)
    path = session_file(raw, suffix=suffix)
    replace(path, path.read_bytes()[:int(keep * path.stat().st_size)])
    refused(raw, tmp_path / "out", rf"betas_session02\{suffix}: expected a whole .* truncated or damaged")
    assert not list((tmp_path / "out").glob("signals*"))


def test_flipped_bit(source, tmp_path):
    raw = source(".nii.gz")
    path = session_file(raw)
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # the check sum behind the last volume
    replace(path, bytes(content))
    refused(raw, tmp_path / "out", r"betas_session02.nii.gz: expected a whole NIfTI file.*CRC")


def rewrite_nifti(path, change, dtype=np.int16):
    image = nibabel.load(path)
    values, affine = np.asarray(image.dataobj), image.affine
    path.unlink()
    nibabel.save(nibabel.Nifti1Image(change(values).astype(dtype), affine), path)


@pytest.mark.parametrize(("change", "dtype", "message"), [
    (lambda x: x[..., :-1], np.int16, "expected 12 trials by nsd_expdesign.mat, got 11"),
    (lambda x: x[:-1], np.int16, r"expected volumes of \(35, 29, 14\) like the mask's, got \(34, 29, 14\)"),
    (lambda x: x / 300, np.float32, r"expected int16 \(percent signal change x 300\), got float32"),
])
def test_session_that_does_not_fit(source, tmp_path, change, dtype, message):
    raw = source(".nii.gz")
    rewrite_nifti(session_file(raw, 3), change, dtype)
    refused(raw, tmp_path / "out", f"betas_session03.nii.gz: {message}")
    assert not list((tmp_path / "out").glob("*signals*"))  # found before anything is written


def test_wrong_hdf5(source, tmp_path):
    raw = source(".hdf5")
    path = session_file(raw, suffix=".hdf5")
    path.unlink()
    with h5py.File(path, "w") as file:
        file["data"] = np.zeros(3)
    refused(raw, tmp_path / "out", r"betas_session02.hdf5: expected a whole HDF5 file with the data set 'betas'")


@pytest.mark.parametrize(("name", "message"), [
    ("roi/nsdgeneral.nii.gz", r"betas_session01.nii.gz: expected volumes of \(34, 29, 14\) like the mask's"),
    ("roi/prf-visualrois.nii.gz", r"prf-visualrois.nii.gz: expected a volume of \(35, 29, 14\), got \(34, 29, 14\)"),
])
def test_mask_that_does_not_fit(source, tmp_path, name, message):
    raw = source(".nii.gz")
    rewrite_nifti(raw / "nsddata/ppdata/subj01/func1pt8mm" / name, lambda x: x[:-1])
    refused(raw, tmp_path / "out", message,
            voxels="nsdgeneral" if name == "roi/nsdgeneral.nii.gz" else "nsdgeneral:prf-visualrois")


def test_regions(source, tmp_path):
    raw = source(".nii.gz")
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
    (lambda v: v.update(subjectim=v["subjectim"][:4]), r"expected the pictures of 8 subjects .* got \(4, 20\) and"),
])
def test_design_that_contradicts_itself(source, tmp_path, change, message):
    raw = source(".nii.gz")
    path = raw / "nsddata/experiments/nsd/nsd_expdesign.mat"
    values = {k: v for k, v in loadmat(path).items() if not k.startswith("__")}
    change(values)
    path.unlink()
    savemat(path, values)
    refused(raw, tmp_path / "out", f"nsd_expdesign.mat: {message}")


def test_damaged_design_and_too_few_pictures(sim, source, tmp_path):
    raw = source(".nii.gz")
    stimuli = raw / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
    stimuli.unlink()
    refused(raw, tmp_path / "out", "nsd_stimuli.hdf5: expected it in")
    with h5py.File(stimuli, "w") as file:
        file["imgBrick"] = np.zeros((5, 64, 64, 3), np.uint8)
    refused(raw, tmp_path / "out", r"nsd_stimuli.hdf5: expected at least \d+ pictures in 'imgBrick' by the trials")
    replace(raw / "nsddata/experiments/nsd/nsd_expdesign.mat", b"MATLAB 5.0 or not")
    refused(raw, tmp_path / "out", "nsd_expdesign.mat: expected a whole MATLAB v5 file")


class Hostile:
    def __reduce__(self):
        return (os.system, ("touch hostile",))


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def test_pickles_are_not_opened(sim, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hostile = npy(np.array([Hostile()], dtype=object))
    raw = source(".nii.gz")
    (raw / "COCO_73k_annots_curated.npy").write_bytes(hostile)
    refused(raw, tmp_path / "out", "COCO_73k_annots_curated.npy: expected a plain array of strings")
    shutil.rmtree(raw)
    raw = source("averaged")
    path = raw / "webdataset_avg_split/train/train_subj01_1.tar"
    change_tar(path, lambda name, data: (name, hostile if name.endswith("nsdgeneral.npy") else data))
    refused(raw, tmp_path / "out", r"train_subj01_1.tar: expected a plain array in sample\d+.nsdgeneral", shared=982)
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
def test_tars(source, tmp_path, form, name):
    raw = source(form)
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


def test_averaged_that_contradicts_itself(sim, source, tmp_path):
    raw = source("averaged")
    root = raw / "webdataset_avg_split"
    refused(raw, tmp_path / "out", "expected shared=982 of all sessions there are", shared=1000)
    refused(raw, tmp_path / "out", "expected voxels 'nsdgeneral', which is all", shared=982, voxels="streams")
    write.write_design(sim, raw)
    study = prepare(raw, tmp_path / "fits", shared=982)
    assert len(study.trials)
    design = raw / "nsddata/experiments/nsd/nsd_expdesign.mat"
    values = {k: v for k, v in loadmat(design).items() if not k.startswith("__")}
    values["subjectim"][0, sim.n_shared:], values["subjectim"][1, sim.n_shared:] = (
        values["subjectim"][1, sim.n_shared:].copy(), values["subjectim"][0, sim.n_shared:].copy())
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
            (lambda n, d: (n, npy(np.array([int(sim.shared_early[0])])) if "coco73k" in n else d),
             "expected every picture of subj01 in one split, got number")]:
        replace(path, whole)
        change_tar(path, change)
        refused(raw, tmp_path / "out", message, shared=982)


def test_all_betas_that_contradict_themselves(sim, source, tmp_path):
    raw = source("all_betas")
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
    betas = raw / "betas_all_subj01_fp32_renorm.hdf5"
    content = betas.read_bytes()
    replace(betas, content[:len(content) // 2])
    refused(raw, tmp_path / "out", "betas_all_subj01_fp32_renorm.hdf5: expected a whole HDF5 file")
    betas.unlink()
    refused(raw, tmp_path / "out", r"betas_all_subj01\*.hdf5: expected one file, got none")
    (raw / "coco_images_224_float16.hdf5").unlink()
    refused(raw, tmp_path / "out", "coco_images_224_float16.hdf5: expected it in", subjects=[4])


def test_which_form_lies_there(sim, source, tmp_path):
    raw = source(".nii.gz")
    refused(raw, tmp_path / "out", "another version of the betas is chosen with study.betas", betas="betas_fithrf")
    write.write_all_betas(sim, raw)
    refused(raw, tmp_path / "out", "expected one form of the data, got nifti and all_betas. Choose one with study.form")
    assert len(prepare(raw, tmp_path / "out", form="nifti").trials)
    other = Path(next(raw.glob("nsddata_betas/ppdata/subj01/*/*")))
    other.rename(other.with_name("betas_fithrf"))
    study = prepare(raw, tmp_path / "b2", form="nifti", betas="betas_fithrf", subjects=[1])
    assert "(b2)" in study.specs["subj01"].filtered
    for nothing in (None, tmp_path / "nowhere"):
        refused(nothing, tmp_path / "none", r"study.raw: expected the folder of the Natural Scenes Dataset, got")


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


def test_the_stage(sim, sources, composed):
    """The command's way: the folder is finished, and knows again what it was made of."""
    from brain2img.stages.prepare import prepare as stage

    cfg = composed("prepare", "study=nsd", f"study.raw={sources('.nii.gz')}", "study.subjects=[1,4]",
                   "study.sessions=early", "study.shared=982")
    folder = stage(cfg)
    study = PreparedStudy(folder)
    assert folder.name.startswith("nsdgeneral-982-")
    assert stage(cfg) == folder
    assert study.manifest["subjects"] == ["subj01", "subj04"]

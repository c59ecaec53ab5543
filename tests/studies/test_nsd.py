"""NSD: every layout that people have, written with a known answer, prepared, and compared."""

from __future__ import annotations

import gzip
import shutil

import h5py
import nibabel
import numpy as np
import pandas as pd
import pytest
from nsd_raw import SUBJECTS, known, names, prepare, refused, rewrite_nifti, session_file
from scipy.io import savemat

from brain2img.data.prepared import PreparedStudy
from brain2img.simulate import nsd as simulated
from brain2img.simulate import nsd_files as write
from brain2img.studies import nsd_design
from brain2img.studies.nsd import NSD
from brain2img.studies.nsd_design import Design
from brain2img.studies.nsd_files import BetaSession, Voxels

ROUNDING = 0.5 / 300 + 1e-6


# ---- forms ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("form", [".nii.gz", ".nii", ".hdf5", "contiguous"])
def test_published(nsd_sim, nsd_folder, tmp_path, form):
    study = prepare(nsd_folder(form), tmp_path / "out", image_size=None)
    assert study.subjects == ["subj01", "subj04"]
    for subject in SUBJECTS:
        trials, betas = known(nsd_sim, subject)
        spec, _ = nsd_sim.recording(subject)
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
    assert rows == list(dict.fromkeys(n for s in SUBJECTS for n in nsd_sim.trials(s)["image"]))
    np.testing.assert_array_equal(study.stimuli.images(), [nsd_sim.image(row) for row in rows])
    assert study.stimuli.images([3]).shape == (1, 64, 64, 3)


def test_sessions_and_trials_of_subjects_differ(nsd_sim, nsd_folder, tmp_path):
    study = prepare(nsd_folder(".nii.gz"), tmp_path / "out")
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


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_volumes_that_nibabel_wrote(tmp_path, monkeypatch, suffix, order):
    rng = np.random.default_rng(0)
    volumes = rng.integers(-900, 900, (4, 5, 6, 30)).astype(f"{order}i2")  # x, y, z, trials
    mask = rng.random((4, 5, 6)) < 0.3
    path = tmp_path / f"betas_session01{suffix}"
    header = nibabel.Nifti1Header(endianness=order)
    header.set_data_dtype(np.int16)
    nibabel.save(nibabel.Nifti1Image(volumes, np.eye(4), header), path)
    assert nibabel.load(path).get_data_dtype() == np.dtype(f"{order}i2")
    monkeypatch.setattr("brain2img.studies.nsd_files._BLOCK_BYTES", 1700)  # several reads, the last one shorter
    session = BetaSession(path, Voxels(np.argwhere(mask), np.eye(4), mask.shape, ("",) * int(mask.sum())),
                          np.array([0, 3, 4, 17, 29]))
    session.check(n_trials=30)
    np.testing.assert_array_equal(np.concatenate(list(session()))[:, :, 0],
                                  volumes[mask].T[[0, 3, 4, 17, 29]].astype(np.float32) / 300)


def test_sessions_may_be_packed_or_not(nsd_folder, nsd_copy, tmp_path):
    raw = nsd_copy(".nii.gz")
    path = session_file(raw)
    path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
    path.unlink()
    whole, mixed = (prepare(r, tmp_path / name, subjects=[1], sessions=3, shared=982)
                    for r, name in ((nsd_folder(".nii.gz"), "whole"), (raw, "mixed")))
    np.testing.assert_array_equal(mixed.signals("subj01"), whole.signals("subj01"))


@pytest.mark.parametrize("form", ["averaged", "unpacked"])
def test_averaged(nsd_sim, nsd_folder, tmp_path, form):
    study = prepare(nsd_folder(form), tmp_path / "out", shared=982)
    for subject in SUBJECTS:
        name = f"subj{subject:02d}"
        trials = nsd_sim.trials(subject).iloc[:nsd_sim.early_sessions(subject) * nsd_sim.per_session]
        betas = nsd_sim.standardised(subject)
        found = study.trials_of(name)
        assert set(found.loc[found["split"] == "test", "stimulus_id"]) == set(names(
            set(trials["image"]) & set(nsd_sim.shared)))
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
    difference = study.stimuli.images().astype(int) - np.array([nsd_sim.image(row) for row in rows])
    assert np.abs(difference).mean() < 2  # JPEG


@pytest.mark.parametrize(("shared", "pictures"), [(1000, "float16"), (982, "nsd_stimuli")])
def test_all_betas(nsd_sim, nsd_copy, tmp_path, shared, pictures):
    raw = nsd_copy("all_betas")
    if pictures == "nsd_stimuli":
        write.write_pictures(nsd_sim, raw)
    study = prepare(raw, tmp_path / "out", shared=shared, image_size=None)
    for subject in SUBJECTS:
        trials, _ = known(nsd_sim, subject)
        is_shared = trials["image"].isin(nsd_sim.shared)
        early = trials["image"].isin(nsd_sim.shared_early) & (trials["session"] <= nsd_sim.early_sessions(subject))
        keep = ~is_shared | (is_shared if shared == 1000 else early)
        found = study.trials_of(f"subj{subject:02d}")
        assert found["stimulus_id"].tolist() == names(trials.loc[keep, "image"])
        assert found["session"].tolist() == trials.loc[keep, "session"].tolist()
        assert found["run"].tolist() == trials.loc[keep, "run"].tolist()
        assert ((found["split"] == "test") == is_shared[keep].to_numpy()).all()
        np.testing.assert_allclose(study.signals(f"subj{subject:02d}")[:, :, 0], nsd_sim.standardised(subject)[keep],
                                   rtol=1e-6)
    rows = [int(name[3:]) - 1 for name in study.stimulus_table["stimulus_id"]]
    np.testing.assert_array_equal(study.stimuli.images(), [nsd_sim.image(row) for row in rows])
    assert set(study.stimulus_table["file"]) == {"images.npy"}, "in the folder, whatever they were in"


# ---- voxels, splits, captions ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("voxels", ["prf-visualrois", "nsdgeneral:prf-visualrois", "brain", "brain:prf-visualrois"])
def test_voxels(nsd_sim, nsd_folder, tmp_path, voxels):
    study = prepare(nsd_folder(".nii.gz"), tmp_path / "out", voxels=voxels, subjects=[1])
    spec, _ = nsd_sim.recording(1)
    masks = nsd_sim.masks(1)
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
    volumes = np.concatenate([[v[expected] for v in nsd_sim.volumes(1, session)] for session in range(1, 6)])
    np.testing.assert_array_equal(study.signals("subj01")[:, :, 0], volumes.astype(np.float32) / 300)


def test_brain_leaves_out_what_a_session_did_not_cover(nsd_sim, nsd_copy, tmp_path):
    raw = nsd_copy(".nii.gz")
    valid = nsd_sim.masks(1)["brain"].astype(np.uint8)
    gone = np.argwhere(valid)[7]
    valid[tuple(gone)] = 0
    nibabel.save(nibabel.Nifti1Image(valid, nsd_sim.recording(1)[0].affine),
                 raw / "nsddata/ppdata/subj01/func1pt8mm/valid_session02.nii.gz")
    prepared = prepare(raw, tmp_path / "out", voxels="brain", subjects=[1], sessions=1).specs["subj01"]
    assert prepared.n_channels == valid.sum()
    assert not (prepared.ijk == gone).all(axis=1).any()


def test_noise_ceiling(nsd_sim, nsd_folder, tmp_path):
    study = prepare(nsd_folder(".nii.gz"), tmp_path / "out")
    for name, subject in zip(study.subjects, SUBJECTS, strict=True):
        trials = nsd_sim.trials(subject)
        share = (1 / trials[trials["image"].isin(nsd_sim.shared)].groupby("image").size()).mean()
        expected = nsd_sim.snr**2 / (nsd_sim.snr**2 + share)
        np.testing.assert_allclose(study.specs[name].noise_ceiling, expected, rtol=1e-6)


@pytest.mark.parametrize("shared", [1000, 982])
def test_splits(nsd_sim, nsd_folder, tmp_path, shared):
    study = prepare(nsd_folder(".nii.gz"), tmp_path / "out", shared=shared)
    test = nsd_sim.shared if shared == 1000 else nsd_sim.shared_early
    assert 0 < len(nsd_sim.shared_early) < len(nsd_sim.shared)
    for name, subject in zip(study.subjects, SUBJECTS, strict=True):
        trials = nsd_sim.trials(subject)
        found = study.trials_of(name)
        used = trials[~trials["image"].isin(nsd_sim.shared) | trials["image"].isin(test)]
        assert found["stimulus_id"].tolist() == names(used["image"])
        assert ((found["split"] == "test") == used["image"].isin(test).to_numpy()).all()
        assert set(found["split"]) == {"train", "val", "test"}
        betas = nsd_sim.recording(subject)[1][used.index]
        np.testing.assert_allclose(study.signals(name)[:, :, 0], betas, atol=ROUNDING)


def test_validation_depends_on_picture_and_seed_alone(nsd_folder, tmp_path):
    raw = nsd_folder(".nii.gz")
    studies = [prepare(raw, tmp_path / str(i), **changes) for i, changes in enumerate(
        [{}, {"subjects": [4]}, {"sessions": 2, "shared": 982}, {"seed": 1}])]
    validation = [set(s.trials.loc[s.trials["split"] == "val", "stimulus_id"]) for s in studies]
    seen = [set(s.trials["stimulus_id"]) for s in studies]
    assert validation[1] == validation[0] & seen[1]
    assert validation[2] == validation[0] & seen[2]
    assert validation[3] != validation[0]


@pytest.mark.parametrize(("sessions", "there"), [("early", [2, 1]), (4, [4, 3]), (1, [1, 1])])
def test_fewer_sessions(nsd_copy, tmp_path, sessions, there):
    raw = nsd_copy(".nii.gz")
    for name, n in zip(("subj01", "subj04"), there, strict=True):
        for path in raw.glob(f"nsddata_betas/ppdata/{name}/*/*/betas_session*"):
            if int(path.name[13:15]) > n:
                path.unlink()
    study = prepare(raw, tmp_path / "out", sessions=sessions)
    assert [study.trials_of(s)["session"].max() for s in study.subjects] == there


@pytest.mark.parametrize("kind", ["coco", "curated", "both", "none"])
def test_captions(nsd_sim, nsd_copy, tmp_path, kind):
    raw = nsd_copy(".nii.gz")
    if kind in ("coco", "both"):
        write.write_captions(nsd_sim, raw)
    if kind in ("curated", "both"):
        write.write_captions(nsd_sim, raw, curated=True)
    table = prepare(raw, tmp_path / "out", subjects=[1], sessions=1).stimulus_table
    rows = [int(name[3:]) - 1 for name in table["stimulus_id"]]
    assert table["captions"].tolist() == [[] if kind == "none" else list(nsd_sim.scene(row).captions) for row in rows]
    assert table["attributes"].tolist() == [{"coco_id": 1000 + 7 * row} if kind in ("coco", "both") else {}
                                            for row in rows]


def test_captions_of_coco_are_there_whole_or_not_at_all(nsd_sim, nsd_copy, tmp_path, caplog):
    raw = nsd_copy(".nii.gz")
    study = {"subjects": [1], "sessions": 1}
    prepare(raw, tmp_path / "none", **study)
    assert "no captions" in caplog.text
    write.write_captions(nsd_sim, raw)
    (raw / "annotations/captions_val2017.json").unlink()
    refused(raw, tmp_path / "out", "captions_val2017.json: expected it in .* the captions of the others are", **study)
    table = raw / "nsddata/experiments/nsd/nsd_stim_info_merged.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:3]))
    refused(raw, tmp_path / "out", r"nsd_stim_info_merged.csv: expected all pictures .*, got none for \d+", **study)


def test_the_id_of_raw_files_does_not_depend_on_where_they_lie(nsd_folder, nsd_copy, repair):
    study = NSD(subjects=SUBJECTS)
    raw = nsd_copy(".nii.gz")
    same = study.raw_id(nsd_folder(".nii.gz"))
    assert study.raw_id(raw) == same
    assert study.raw_id(nsd_folder(".hdf5")) != same
    rewrite_nifti(raw / "nsddata/ppdata/subj01/func1pt8mm/roi/nsdgeneral.nii.gz",
                  lambda x: np.where(np.arange(x.size).reshape(x.shape) == np.argmax(x > 0), 0, x))  # a voxel fewer
    fewer = study.raw_id(raw)
    assert fewer != same
    repair(next(raw.rglob("betas_session01.nii.gz")))
    repaired = study.raw_id(raw)
    repair(next(raw.rglob("nsd_stimuli.hdf5")))
    assert len({same, fewer, repaired, study.raw_id(raw)}) == 4
    unpacked = NSD(subjects=SUBJECTS, shared=982)
    before = unpacked.raw_id(nsd_folder("unpacked"))
    shutil.rmtree(raw)
    raw = nsd_copy("unpacked")
    assert unpacked.raw_id(raw) == before
    next((raw / "webdataset_avg_split/test/subj01").iterdir()).unlink()
    assert unpacked.raw_id(raw) != before


#: Trials with shared pictures, and shared pictures, after so many sessions of NSD as published; then all pictures.
PUBLISHED = {27: (1985, None, None), 29: (2113, None, None), 30: (2188, 907, 9209), 32: (2371, 930, 9411),
             37: (2770, 982, 9841), 40: (3000, 1000, 10000)}


def presented(n_pictures: dict[int, int]) -> list[int]:
    """Return an order of pictures, each shown three times: so many of them within the first trials as asked."""
    order, again = [], []
    for stop, n in n_pictures.items():
        new = list(range(max(order, default=-1) + 1, n))
        again += 2 * new
        repeated = stop - len(order) - len(new)
        order += new + again[:repeated]
        del again[:repeated]
    return order


def whole_design(path):
    """Write a design of NSD's size with the published counts."""
    shared = presented({trials: n for trials, n, _ in PUBLISHED.values() if n})
    own = presented({750 * sessions - trials: every - n for sessions, (trials, n, every) in PUBLISHED.items() if n})
    order, done = [], 0
    for sessions, (trials, _, _) in PUBLISHED.items():
        order += shared[done:trials] + [1000 + n for n in own[len(order) - done:750 * sessions - trials]]
        done = trials
    pattern = np.zeros((40, 12, 75))
    pattern[:, ::2, :63] = pattern[:, 1::2, :62] = 1
    images = np.concatenate([np.tile(np.arange(1000), (8, 1)), np.arange(1000, 73000).reshape(8, 9000)], axis=1)
    values = {"masterordering": np.array([order]) + 1, "subjectim": images + 1, "sharedix": np.arange(1000)[None] + 1,
              "stimpattern": pattern}
    savemat(path, values, do_compression=True)
    return values


def test_the_whole_design_has_the_published_counts(tmp_path):
    path = tmp_path / "nsd_expdesign.mat"
    values = whole_design(path)
    design = Design.read(path)
    assert (len(design.shared), len(design.shared_early)) == (1000, 982)
    trials = {subject: design.trials(subject, sessions=nsd_design.n_sessions(subject, sessions="all"))
              for subject in range(1, 9)}
    assert [len(t) for t in trials.values()] == [30000, 30000, 24000, 22500, 30000, 24000, 30000, 22500]
    assert [int(t["image"].isin(design.shared).sum()) for t in trials.values()] == [
        3000, 3000, 2371, 2188, 3000, 2371, 3000, 2188]
    early = design.trials(1, sessions=nsd_design.n_sessions(1, sessions="early"))
    is_test = early["image"].isin(design.shared_early)
    assert (int(is_test.sum()), int((~is_test).sum()), early.loc[~is_test, "image"].nunique()) == (2770, 24980, 8859)
    values["masterordering"] = values["masterordering"][:, ::-1]
    savemat(path, values)
    with pytest.raises(ValueError, match=r"nsd_expdesign.mat: expected .*1985\) .* in the first 27 sessions, as publ"):
        Design.read(path)


# ---- continuing -----------------------------------------------------------------------------------------------------

def test_an_interrupted_call_goes_on_with_its_session(nsd_folder, tmp_path, monkeypatch):
    whole = prepare(nsd_folder(".nii.gz"), tmp_path / "whole")
    real, read = BetaSession.__call__, []

    def dies(self):
        read.append(self.path.name)
        if self.path.name.startswith("betas_session03"):
            raise KeyboardInterrupt
        yield from real(self)

    with monkeypatch.context() as patch:
        patch.setattr(BetaSession, "__call__", dies)
        with pytest.raises(KeyboardInterrupt):
            prepare(nsd_folder(".nii.gz"), tmp_path / "out")
    assert not (tmp_path / "out" / "spec.json").exists()
    read.clear()
    monkeypatch.setattr(BetaSession, "__call__", lambda self: (read.append(self.path.name), *real(self))[1:])
    study = prepare(nsd_folder(".nii.gz"), tmp_path / "out")
    assert read == [f"betas_session{n:02d}.nii.gz" for n in (3, 4, 5, 1, 2, 3)]
    for name in study.subjects:
        np.testing.assert_array_equal(study.signals(name), whole.signals(name))
    pd.testing.assert_frame_equal(study.trials, whole.trials)


def test_sessions_in_processes_of_their_own(nsd_folder, tmp_path):
    one = prepare(nsd_folder(".hdf5"), tmp_path / "one", subjects=[1], sessions=2, shared=982)
    two = prepare(nsd_folder(".hdf5"), tmp_path / "two", subjects=[1], sessions=2, shared=982, jobs=2)
    np.testing.assert_array_equal(two.signals("subj01"), one.signals("subj01"))


def test_the_stage(nsd_sim, nsd_folder, composed):
    """The command's way: the folder is finished, and knows again what it was made of."""
    from brain2img.stages.prepare import prepare as stage

    cfg = composed("prepare", "study=nsd", f"raw={nsd_folder('.nii.gz')}", "study.subjects=[1,4]",
                   "study.sessions=early", "study.shared=982")
    folder = stage(cfg)
    study = PreparedStudy(folder)
    assert folder.name.startswith("nsdgeneral-982-")
    assert stage(cfg) == folder
    assert study.manifest["subjects"] == ["subj01", "subj04"]

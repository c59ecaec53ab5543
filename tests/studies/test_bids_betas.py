"""study=bids_betas: betas written by nibabel, prepared, and compared with the maps of each picture voxel by voxel."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from bids_raw import AFFINE, SHAPE, Betas, beta, save

from brain2img.data.prepared import PreparedStudy
from brain2img.studies.bids_betas import BIDSBetas

MASK = "derivatives/glm/sub-*/anat/sub-*_space-T1w_desc-brain_mask.nii.gz"
ATLAS = "derivatives/glm/sub-*/anat/sub-*_space-T1w_dseg.nii.gz"


def prepare(root: Path, out: Path, **changes) -> PreparedStudy:
    out.mkdir()
    BIDSBetas(**changes).prepare(root, out)
    return PreparedStudy(out, finished=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return Betas(tmp_path_factory.mktemp("bids") / "raw").write()


@pytest.fixture
def copy(data, tmp_path):
    return Path(shutil.copytree(data.root, tmp_path / "copy"))


def expected(data: Betas, subject: str = "01") -> tuple[list[str], np.ndarray]:
    """Return pictures and maps ``(n, 5, 6, 4)`` of all trials with a picture, in order."""
    shown = [data.shown[subject, session, run] for session in data.sessions for run in data.runs]
    maps = np.concatenate([data.maps(some)[some >= 0] for some in shown])
    return [data.names[s] for some in shown for s in some if s >= 0], maps


def at(values: np.ndarray, ijk: np.ndarray) -> np.ndarray:
    return values[(slice(None), *ijk.T)]


def test_betas_by_run_within_the_mask(data, tmp_path):
    study = prepare(data.root, tmp_path / "out", voxels={"atlas": ATLAS}, maps={"units": "percent signal change"})
    spec, trials = study.specs["sub-01"], study.trials_of("sub-01")
    names, maps = expected(data)
    assert trials["stimulus_id"].tolist() == names
    assert trials.groupby(["session", "run"], sort=False).size().to_dict() == {
        (s, r): 10 for s in "12" for r in "12"}
    assert trials["repetition"].tolist() == pd.Series(names).groupby(names).cumcount().tolist()
    np.testing.assert_array_equal(spec.ijk, np.argwhere(data.mask))
    np.testing.assert_array_equal(spec.affine, AFFINE)
    assert (spec.volume_shape, spec.units, spec.n_times) == (SHAPE, "percent signal change", 1)
    np.testing.assert_array_equal(study.signals("sub-01")[..., 0], at(maps, spec.ijk))
    assert spec.rois == tuple({0: "", 3: "V1", 7: "LOC"}[n] for n in data.atlas[tuple(spec.ijk.T)])
    assert trials.drop_duplicates("stimulus_id")["split"].value_counts().to_dict() == {"train": 7, "test": 2, "val": 1}


def test_other_orders_of_the_axes_are_followed(data, tmp_path):
    other = Betas(tmp_path / "raw", axes={"2": "LAS", "mask": "PIR", "atlas": "LPI"}).write()
    plain = prepare(data.root, tmp_path / "plain", voxels={"atlas": ATLAS})
    turned = prepare(other.root, tmp_path / "turned", voxels={"atlas": ATLAS})
    np.testing.assert_array_equal(turned.signals("sub-01"), plain.signals("sub-01"))
    np.testing.assert_array_equal(turned.specs["sub-01"].ijk, plain.specs["sub-01"].ijk)
    assert turned.specs["sub-01"].rois == plain.specs["sub-01"].rois


@pytest.mark.parametrize("what", ["mask", "atlas", "betas"])
def test_another_grid_of_the_same_shape_is_refused(data, copy, tmp_path, what):
    moved = AFFINE.copy()
    moved[0, 3] += 2
    if what == "betas":
        path = Betas(copy).path("01", "2", "1", "space-T1w_betas.nii.gz")
        values = np.moveaxis(data.maps(data.shown["01", "2", "1"]), 0, -1)
    else:
        path = copy / {"mask": MASK, "atlas": ATLAS}[what].replace("sub-*", "sub-01")
        values = getattr(data, what)
    save(values, path, affine=moved)
    with pytest.raises(ValueError, match=rf"{path.name}: expected the voxels of .*_ses-1_task-look_run-1_space-T1w"):
        prepare(copy, tmp_path / "out", voxels={"atlas": ATLAS})


def test_a_file_of_a_session_takes_the_events_of_its_runs(data, copy, tmp_path):
    for session in data.sessions:
        files = [data.path("01", session, run, "space-T1w_betas.nii.gz") for run in data.runs]
        both = np.concatenate([np.asarray(nibabel.load(f).dataobj) for f in files], axis=-1)
        folder = copy / data.derivative / f"sub-01/ses-{session}/func"
        for path in folder.glob("*betas*"):
            path.unlink()
        save(both, folder / f"sub-01_ses-{session}_task-look_space-T1w_betas.nii.gz")
    study = prepare(copy, tmp_path / "out")
    names, maps = expected(data)
    assert study.trials_of("sub-01")["stimulus_id"].tolist() == names
    np.testing.assert_array_equal(study.signals("sub-01")[..., 0], at(maps, study.specs["sub-01"].ijk))


def test_one_volume_a_trial(data, copy, tmp_path):
    for (subject, session, run), shown in data.shown.items():
        data_path = Betas(copy).path(subject, session, run, "space-T1w_betas.nii.gz")
        data_path.unlink()
        files = [f"sub-01_ses-{session}_task-look_run-{run}_space-T1w_desc-trial{i:02d}_statmap.nii.gz"
                 for i in range(len(shown))]
        for file, volume in zip(files, data.maps(shown), strict=True):
            save(volume, data_path.with_name(file))
        path = Betas(copy).path(subject, session, run, "events.tsv", derivative=False)
        table = pd.read_csv(path, sep="\t").assign(file=files)
        table.loc[table["stim_file"].isna(), "file"] = "n/a"
        table.to_csv(path.parent.parent.parent.parent / data.derivative / path.relative_to(copy), sep="\t",
                     index=False, na_rep="n/a")
    with pytest.raises(ValueError, match=r"expected maps of one desc, got trial00, .* Choose one with study.entities"):
        prepare(copy, tmp_path / "refused")
    study = prepare(copy, tmp_path / "out", events={"file_column": "file"})
    names, maps = expected(data)
    assert study.trials_of("sub-01")["stimulus_id"].tolist() == names
    np.testing.assert_array_equal(study.signals("sub-01")[..., 0], at(maps, study.specs["sub-01"].ijk))
    next(copy.rglob("*desc-trial03_statmap.nii.gz")).unlink()
    with pytest.raises(ValueError, match=r"expected the files of column 'file' beside it .* \(1 of 11 are missing\)"):
        prepare(copy, tmp_path / "missing", events={"file_column": "file"})


@pytest.mark.parametrize("form", [".npy", ".tsv", ".ptseries.nii", ".dscalar.nii"])
def test_parcels_and_greyordinates(data, copy, tmp_path, form):
    labels = ["V1_L", "V1_R", "LOC"]
    for (_, session, run), shown in data.shown.items():
        old = Betas(copy).path("01", session, run, "space-T1w_betas.nii.gz")
        values = data.maps(shown)[:, :3, 0, 0]
        path = old.with_name(old.name.replace("space-T1w_betas.nii.gz", f"atlas-x_betas{form}"))
        if form == ".npy":
            np.save(path, values)
        elif form == ".tsv":
            pd.DataFrame(values, columns=labels).to_csv(path, sep="\t", index=False)
        elif form == ".ptseries.nii":
            parcels = nibabel.cifti2.ParcelsAxis(labels, [np.array([[i, 0, 0]]) for i in range(3)], [{}] * 3,
                                                 affine=AFFINE, volume_shape=SHAPE)
            series = nibabel.cifti2.SeriesAxis(0, 1, len(values))
            nibabel.save(nibabel.Cifti2Image(values, (series, parcels)), path)
        else:
            surface = nibabel.cifti2.BrainModelAxis.from_surface(np.arange(3), 10, name="CORTEX_LEFT")
            trials = nibabel.cifti2.ScalarAxis([f"trial {i}" for i in range(len(values))])
            nibabel.save(nibabel.Cifti2Image(values, (trials, surface)), path)
        old.unlink()
    table = copy / "parcels.tsv"
    pd.DataFrame({"index": [1, 2, 3], "name": labels}).to_csv(table, sep="\t", index=False)
    changes = {".npy": {"voxels": {"labels": "parcels.tsv"}}, ".tsv": {"maps": {"suffix": "betas"}}}.get(form, {})
    if form == ".tsv":
        changes["maps"] |= {"derivative": "derivatives/glm"}
    study = prepare(copy, tmp_path / "out", **changes)
    names, maps = expected(data)
    assert study.trials_of("sub-01")["stimulus_id"].tolist() == names
    np.testing.assert_allclose(study.signals("sub-01")[..., 0], maps[:, :3, 0, 0], rtol=1e-6)
    assert study.specs["sub-01"].rois == (("CORTEX_LEFT",) * 3 if form == ".dscalar.nii" else tuple(labels))
    assert study.specs["sub-01"].ijk is None


def test_masks(data, copy, tmp_path, caplog):
    maps = data.maps(data.shown["01", "1", "1"])
    maps[0, 1, 1, 1], maps[0, 4, 5, 3] = np.nan, 0
    save(np.moveaxis(maps, 0, -1), Betas(copy).path("01", "1", "1", "space-T1w_betas.nii.gz"))
    study = prepare(copy, tmp_path / "nan")
    assert study.specs["sub-01"].ijk.tolist() == [v for v in np.argwhere(data.mask).tolist() if v != [1, 1, 1]]
    assert "sub-01: 1 of 24 voxels of the mask are NaN in a file and are left out" in caplog.text
    study = prepare(copy, tmp_path / "nonzero", voxels={"mask": "nonzero"})
    assert study.specs["sub-01"].n_channels == np.prod(SHAPE) - 2
    mask = copy / MASK.replace("sub-*", "sub-01")
    second = mask.with_name(mask.name.replace("desc-brain", "desc-visual"))
    shutil.copy(mask, second)
    with pytest.raises(ValueError, match=r"sub-01: expected masks of one kind in the space of the maps .* got brain, "
                                         r"visual. Name one with study.voxels.mask=<file>"):
        prepare(copy, tmp_path / "two")
    assert prepare(copy, tmp_path / "named", voxels={"mask": MASK}).specs["sub-01"].n_channels == 23
    second.unlink()
    mask.unlink()
    with pytest.raises(ValueError, match=r"expected masks of one kind .* got none. Name one with study.voxels.mask"):
        prepare(copy, tmp_path / "none")
    with pytest.raises(ValueError, match=r"expected a file, by study.voxels.mask, got no such file"):
        prepare(copy, tmp_path / "gone", voxels={"mask": MASK})


def test_an_atlas_without_names(data, copy, tmp_path):
    table = (copy / ATLAS.replace("sub-*", "sub-01")).with_suffix("").with_suffix(".tsv")
    pd.DataFrame({"index": [3], "name": ["V1"]}).to_csv(table, sep="\t", index=False)
    with pytest.raises(ValueError, match=r"dseg.tsv: expected names of all labels of .*, got none of \[7\]"):
        prepare(copy, tmp_path / "a", voxels={"atlas": ATLAS})
    table.unlink()
    with pytest.raises(ValueError, match=r"expected a table of its labels, .*_dseg.tsv with the columns index and"):
        prepare(copy, tmp_path / "b", voxels={"atlas": ATLAS})
    (copy / "lut.txt").write_text("# no name\n3 V1 255 0 0 0\n7 LOC 0 255 0 0\n")
    study = prepare(copy, tmp_path / "c", voxels={"atlas": ATLAS, "labels": "lut.txt"})
    assert set(study.specs["sub-01"].rois) == {"V1", "LOC"}


def test_events_that_do_not_fit_the_maps(data, copy, tmp_path):
    maps = data.maps(data.shown["01", "1", "1"])[:10]
    save(np.moveaxis(maps, 0, -1), Betas(copy).path("01", "1", "1", "space-T1w_betas.nii.gz"))
    with pytest.raises(ValueError, match=r"ses-1_task-look_run-1_space-T1w_betas.nii.gz: expected 11 maps, one for "
                                         r"each event of sub-01_ses-1_task-look_run-1_events.tsv, got 10 "
                                         r"\(10 events have a picture\). Choose the events that were fitted"):
        prepare(copy, tmp_path / "out")
    for session in "12":
        for run in "12":
            if (session, run) != ("1", "1"):
                shown = data.shown["01", session, run]
                save(np.moveaxis(data.maps(shown)[:10], 0, -1), Betas(copy).path(
                    "01", session, run, "space-T1w_betas.nii.gz"))
    study = prepare(copy, tmp_path / "where", events={"where": {"trial_type": ["image"]}})
    np.testing.assert_array_equal(study.signals("sub-01")[..., 0], at(expected(data)[1], study.specs["sub-01"].ijk))
    Betas(copy).path("01", "1", "1", "events.tsv", derivative=False).unlink()
    with pytest.raises(ValueError, match=r"run-1_space-T1w_betas.nii.gz: expected a table of its events, a line a map"):
        prepare(copy, tmp_path / "none")


def test_time_series_are_not_betas(data, tmp_path):
    raw = tmp_path / "raw"
    shutil.copytree(data.root / "stimuli", raw / "stimuli")
    save(np.zeros((*SHAPE, 5), np.float32), raw / "sub-01/func/sub-01_task-look_bold.nii.gz")
    with pytest.raises(ValueError, match=r"expected maps of single trials .* got none. betas of single trials are "
                                         r"expected, time series are not fitted here: fit them with GLMsingle"):
        prepare(raw, tmp_path / "out")


def test_several_derivatives_suffixes_and_spaces_are_told_apart(data, copy, tmp_path):
    shutil.copytree(copy / "derivatives/glm", copy / "derivatives/lss")
    with pytest.raises(ValueError, match=r"got derivatives/glm and derivatives/lss. Choose one with study.maps.deriv"):
        prepare(copy, tmp_path / "a")
    assert len(prepare(copy, tmp_path / "b", maps={"derivative": "derivatives/lss"}).trials) == 40
    path = next((copy / "derivatives/glm").rglob("*_betas.nii.gz"))
    other = path.with_name(path.name.replace("space-T1w", "space-MNI"))
    shutil.copy(path, other)
    with pytest.raises(ValueError, match=r"expected maps of one space, got MNI, T1w. Choose one with study.entities."):
        prepare(copy, tmp_path / "c", maps={"derivative": "derivatives/glm"})
    assert len(prepare(copy, tmp_path / "d", maps={"derivative": "derivatives/glm"},
                       entities={"space": "T1w"}).trials) == 40
    other.rename(other.with_name(path.name.replace("betas", "statmap")))
    with pytest.raises(ValueError, match=r"expected maps of one suffix, got betas, statmap. Choose one with study"):
        prepare(copy, tmp_path / "e", maps={"derivative": "derivatives/glm"})


def test_the_identity_of_the_raw_files(data, copy, repair):
    first = BIDSBetas().raw_id(data.root)
    assert first == BIDSBetas().raw_id(copy)
    mask = copy / MASK.replace("sub-*", "sub-01")
    save(1 - data.mask, mask)
    ids = [first, BIDSBetas(voxels={"mask": MASK}).raw_id(copy), BIDSBetas(voxels={"mask": MASK}).raw_id(data.root)]
    path = next(copy.rglob("*_events.tsv"))
    path.write_text(path.read_text().replace("p00", "p01"))
    ids.append(BIDSBetas().raw_id(copy))
    repair(next(copy.rglob("*betas.nii.gz")))
    ids.append(BIDSBetas().raw_id(copy))
    repair(next(copy.rglob("stimuli/**/*.png")))
    assert len({*ids, BIDSBetas().raw_id(copy)}) == 6


def test_two_subjects_and_those_named(tmp_path):
    data = Betas(tmp_path / "raw", subjects=("01", "02"), sessions=("1",), runs=("1",)).write()
    study = prepare(data.root, tmp_path / "out")
    assert study.subjects == ["sub-01", "sub-02"]
    np.testing.assert_array_equal(study.signals("sub-02")[0, :, 0], beta(int(data.shown["02", "1", "1"][0]))[
        data.mask > 0])
    assert prepare(data.root, tmp_path / "one", subjects=[2]).subjects == ["sub-02"]
    with pytest.raises(ValueError, match=r"study.subjects: expected different subjects of \['01', '02'\], got \[3\]"):
        prepare(data.root, tmp_path / "three", subjects=[3])

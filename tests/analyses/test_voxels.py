"""Regions and voxel importance: a planted order of regions is found, maps lie where the voxels lie."""

from __future__ import annotations

import nibabel
import numpy as np
import pandas as pd
import pytest

from brain2img.analyses.importance import contributions
from brain2img.artifacts import EmbeddingCache, open_folder, write_array, write_json, write_table
from brain2img.data.datamodule import BrainData
from brain2img.data.normalisation import Normalisation
from brain2img.data.prepared import PreparedStudy, PreparedWriter
from brain2img.data.trials import Split
from brain2img.decoders.ridge import Ridge
from brain2img.records import BrainBatch, EmbeddingSpec, SignalSpec
from brain2img.report.volumes import to_volume, write_map

SHAPE = (9, 8, 7)
AFFINE = np.array([[2.0, 0, 0, -8], [0, 2, 0, -7], [0, 0, 3, 4], [0, 0, 0, 1]])
STRENGTH = {"strong": 1.5, "weak": 0.4, "noise": 0.0}
N_VOXELS = 90


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Return data whose voxels carry much, little or nothing of a code, by region, and a fitted ridge."""
    folder = tmp_path_factory.mktemp("planted")
    rng = np.random.default_rng(0)
    splits = ["train"] * 200 + ["val"] * 60 + ["test"] * 60
    ids = [f"{split}-{i:03d}" for i, split in enumerate(splits)]
    code = rng.standard_normal((len(ids), 8))
    (folder / "study").mkdir()
    writer = PreparedWriter(folder / "study", study="planted")
    for subject in ("sub-01", "sub-02"):
        rois = tuple(rng.permutation(np.repeat(list(STRENGTH), N_VOXELS // 3)).tolist())
        flat = rng.permutation(np.prod(SHAPE))[:N_VOXELS]
        spec = SignalSpec(subject=subject, modality="fmri", units="a.u.", n_channels=N_VOXELS, n_times=1, rois=rois,
                          ijk=np.stack(np.unravel_index(flat, SHAPE), axis=1), affine=AFFINE, volume_shape=SHAPE)
        x = (code @ rng.standard_normal((8, N_VOXELS)) / np.sqrt(8)) * [STRENGTH[r] for r in rois]
        x = x + rng.standard_normal(x.shape)
        writer.add_subject(spec, signals=[x[:, :, None]], trials=pd.DataFrame({
            "stimulus_id": ids, "split": splits, "repetition": 0, "session": "1"}))
    writer.finish(pd.DataFrame({"stimulus_id": ids, "kind": "image", "concept": ids}),
                  images=rng.integers(0, 255, (len(ids), 8, 8, 3), dtype=np.uint8))
    stage = open_folder(folder / "cache", stage="embed", config={}, inputs={})
    write_array(folder / "cache" / "embeddings.npy", code.astype("float32"))
    write_table(folder / "cache" / "stimuli.parquet", pd.DataFrame({"stimulus_id": ids}))
    write_json(folder / "cache" / "spec.json", EmbeddingSpec(name="code", shape=(8,), dtype="float32").to_json())
    stage.finish()
    data = BrainData(PreparedStudy(folder / "study", finished=False), split=Split(), normalisation=Normalisation(),
                     targets={"code": EmbeddingCache(folder / "cache")})
    data.fit_normalisation()
    decoder = Ridge(specs=data.specs, targets=data.target_specs)
    decoder.fit(data, folder=folder)
    return data, decoder


def shares(planted, subject, *, method, block=1):
    data, decoder = planted
    items = data.items("val")
    return contributions(decoder, data, items[items["subject"] == subject].reset_index(drop=True), subject=subject,
                         space="code", method=method, block=block, batch_size=50)


@pytest.mark.parametrize("rois", [(), ("noise", "strong")])
def test_the_coefficients_of_ridge_are_what_it_predicts_with(planted, tmp_path, rois):
    data, _ = planted
    decoder = Ridge(specs=data.specs, targets=data.target_specs, alphas=1.0, rois={"code": rois})
    decoder.fit(data, folder=tmp_path)
    for subject, spec in data.specs.items():
        batch = data.batch(data.items("val").query("subject == @subject").reset_index(drop=True))
        nothing = BrainBatch(signals={subject: 0 * batch.signals[subject]}, rows=batch.rows,
                             stimulus_ids=batch.stimulus_ids)
        found = decoder.coefficients(subject, "code")
        assert found.shape == (N_VOXELS, 8)
        np.testing.assert_allclose(batch.signals[subject][:, :, 0].numpy() @ found,
                                   decoder.predict(batch)["code"] - decoder.predict(nothing)["code"], atol=1e-5)
        unused = ~np.isin(spec.rois, rois or tuple(STRENGTH))
        assert not found[unused].any()
        assert found[~unused].any(axis=1).all()
    slopes = decoder.slopes(batch, space="code", directions=np.ones((60, 8)))[subject]
    np.testing.assert_allclose(slopes[7, :, 0], found.sum(axis=1), atol=1e-5)


def test_contributions_of_ridge_add_up_to_the_alignment(planted):
    data, decoder = planted
    items = data.items("val").query("subject == 'sub-02'").reset_index(drop=True)
    batch = data.batch(items)
    still = decoder.predict(BrainBatch(signals={"sub-02": 0 * batch.signals["sub-02"]}, rows=batch.rows,
                                       stimulus_ids=batch.stimulus_ids))["code"]
    decoded = decoder.predict(batch)["code"] - still
    true = data.target("code", items["stimulus_id"].tolist()) - data.mean_target("code")
    true /= np.linalg.norm(true, axis=1, keepdims=True)
    expected = (decoded * true).sum(axis=1) / np.linalg.norm(decoded, axis=1).mean()
    np.testing.assert_allclose(shares(planted, "sub-02", method="gradient").sum(axis=1), expected, rtol=1e-3, atol=1e-4)
    assert expected.mean() > 0.5


def test_occlusion_of_single_voxels_equals_signal_times_coefficient(planted):
    np.testing.assert_allclose(shares(planted, "sub-01", method="occlusion"),
                               shares(planted, "sub-01", method="gradient"), rtol=1e-3, atol=1e-5)


def test_occluded_cubes_lose_what_their_voxels_add(planted):
    data, _ = planted
    cube = np.unique(data.specs["sub-01"].ijk // 3, axis=0, return_inverse=True)[1].ravel()
    by_voxel, by_cube = (shares(planted, "sub-01", method=m, block=3) for m in ("gradient", "occlusion"))
    for number in range(cube.max() + 1):
        np.testing.assert_allclose(by_cube[:, cube == number].sum(axis=1), by_voxel[:, cube == number].sum(axis=1),
                                   rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("subject", ["sub-01", "sub-02"])
def test_voxels_that_respond_matter_and_noise_does_not(planted, subject):
    rois = np.array(planted[0].specs[subject].rois)
    mean = shares(planted, subject, method="gradient").mean(axis=0)
    strong, weak, noise = (mean[rois == name] for name in STRENGTH)
    assert strong.mean() > 3 * weak.mean() > 0
    # 30 voxels without a signal: their mean stays within 3.29 standard errors of 0 in 99.9 % of cases
    assert abs(noise.mean()) < 3.29 * noise.std(ddof=1) / np.sqrt(len(noise)) + 1e-4
    assert (strong > noise.max()).mean() > 0.8


def test_gradients_of_a_deep_decoder_are_its_slopes():
    """Central differences are the reference."""
    import torch

    from brain2img.decoders.deep import DeepDecoder

    torch.manual_seed(0)
    decoder = DeepDecoder.tiny()
    decoder.module.double()
    batch = BrainBatch(signals={"sub-02": torch.randn(3, 40, 1).double(), "sub-01": torch.randn(2, 50, 1).double()},
                       rows={"sub-02": torch.tensor([4, 0, 2]), "sub-01": torch.tensor([1, 3])}, stimulus_ids=[""] * 5)
    directions = np.random.default_rng(0).standard_normal((5, 8))
    slopes = decoder.slopes(batch, space="tiny", directions=directions)
    for subject, voxel in (("sub-02", 7), ("sub-01", 31)):
        values = []
        for step in (1e-3, -1e-3):
            moved = {s: x.clone() for s, x in batch.signals.items()}
            moved[subject][:, voxel] += step
            with torch.no_grad():
                decoded = decoder.module(BrainBatch(signals=moved, rows=batch.rows, stimulus_ids=[""] * 5))[0]["tiny"]
            values.append((decoded.numpy() * directions).sum(axis=1)[batch.rows[subject].numpy()])
        np.testing.assert_allclose(slopes[subject][:, voxel, 0], (values[0] - values[1]) / 2e-3, rtol=1e-2, atol=1e-4)


def test_maps_lie_where_the_voxels_lie(planted, tmp_path):
    spec = planted[0].specs["sub-01"]
    values = np.arange(N_VOXELS) + 1.0
    write_map(values, spec, tmp_path / "map.nii.gz")
    image = nibabel.load(tmp_path / "map.nii.gz")
    assert image.shape == SHAPE
    np.testing.assert_allclose(image.affine, AFFINE)
    volume = np.asarray(image.dataobj)
    for value, (i, j, k) in zip(values, spec.ijk, strict=True):
        assert volume[i, j, k] == value
    assert np.isfinite(volume).sum() == N_VOXELS
    with pytest.raises(ValueError, match="expected a value for each of 90 voxels, got 3"):
        to_volume(np.ones(3), spec)
    first = (tmp_path / "map.nii.gz").read_bytes()
    write_map(values, spec, tmp_path / "map.nii.gz")
    assert (tmp_path / "map.nii.gz").read_bytes() == first


SMALL = ["study=scenes_fmri", "study.n_subjects=2", "study.n_train=160", "study.n_val=40", "study.snr=1.5",
         "study.recording.n_voxels=240", "space=[attributes,pixels]", "decoder=ridge", "headline.space=attributes",
         "headline.metric=two_way", "conditions=[decoded]", "metric=[retrieval,identification,pixcorr]", "name=small",
         "reconstruct.n_stimuli=6"]


@pytest.mark.slow
def test_regions_and_importance_of_a_simulated_study(command, tmp_path):
    """Early areas carry pixels and higher ones objects; importance follows the known noise ceiling."""
    outputs = tmp_path / "outputs"
    for stage in ("prepare", "embed", "train"):
        code, text = command(stage, *SMALL)
        assert code == 0, text
    run = f"run={outputs / 'train' / 'small'}"
    sets = "regions.sets={early:[V1,V2,V3],late:[LO,FFA,PPA,ventral],all:null}"
    code, text = command("regions", run, sets, "regions.reconstruct=true")
    assert code == 0, text
    table = pd.read_parquet(outputs / "regions" / "small" / "regions.parquet")
    means = table[(table["subject"] == "mean") & (table["direction"] == "image_from_brain") &
                  (table["of"] == "embeddings")]
    assert set(table["region"]) == {"early", "late", "all"}
    for metric, chance in (("two_way", 0.5), ("top1", 1 / 200)):
        scores = means[means["metric"] == metric].set_index(["space", "region"])
        assert scores.loc[("pixels", "early"), "low"] > scores.loc[("pixels", "late"), "high"]
        np.testing.assert_allclose(scores["chance"], chance)
    # in top-1; in two-way it was 86.9 % from late areas and 87.2 % from early ones
    assert scores.loc[("attributes", "late"), "value"] > scores.loc[("attributes", "early"), "value"]
    assert (table.loc[table["of"] == "images", "metric"] == "pixcorr").any()
    voxels = table[table["subject"] == "sub-01"].groupby("region")["voxels"].first()
    assert voxels["early"] + voxels["late"] < voxels["all"]
    markdown = (outputs / "regions" / "small" / "regions.md").read_text()
    assert "| early | V1, V2, V3 |" in markdown
    assert (outputs / "regions" / "small" / "regions.png").stat().st_size > 5000

    code, text = command("regions", run, sets, "regions.method=mask", "name=masked", "reconstructor=[]")
    assert code == 0, text
    masked = pd.read_parquet(outputs / "regions" / "masked" / "regions.parquet")
    whole = masked[(masked["region"] == "all") & (masked["of"] == "embeddings")]
    same = table[(table["region"] == "all") & (table["of"] == "embeddings")]
    keys = ["subject", "space", "metric", "direction"]
    both = whole.merge(same, on=keys, suffixes=("", "_ridge"))
    np.testing.assert_allclose(both["value"], both["value_ridge"])  # of all voxels the mask leaves the run as it is

    code, text = command("importance", run)
    assert code == 0, text
    voxel = pd.read_parquet(outputs / "importance" / "small" / "importance.parquet")
    for _, mine in voxel.groupby("subject"):
        assert mine["importance"].corr(mine["noise_ceiling"], method="spearman") > 0.2
    assert len(list((outputs / "importance" / "small").glob("*.nii.gz"))) == 2
    assert len(list((outputs / "importance" / "small").glob("*.png"))) == 2


def test_studies_without_places_or_labels_are_refused(command, digits, tmp_path):
    raw = f"raw={digits()}"
    arguments = ["experiment=digit69/ridge", "split.n_repeats=1", "split.n_folds=2", "space.pixels.size=8",
                 "decoder.cv=2", raw]
    for stage in ("prepare", "embed", "train"):
        assert command(stage, *arguments)[0] == 0
    for script, words in (("regions", "expected a label for every voxel, got none"),
                          ("importance", "expected their places in a volume, got no ijk")):
        code, text = command(script, *arguments)
        assert code == 1, text
        assert words in text, text
        assert "Traceback" not in text
        assert not (tmp_path / "outputs" / script).exists()

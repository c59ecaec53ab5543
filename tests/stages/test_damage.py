"""A changed, swapped, truncated or missing file of any stage stops the next one, which names it and its cure."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig
from PIL import Image

from brain2img.stages.apply_prior import apply_prior
from brain2img.stages.embed import embed
from brain2img.stages.evaluate import evaluate
from brain2img.stages.fit_prior import fit_prior
from brain2img.stages.predict import predict
from brain2img.stages.prepare import prepare
from brain2img.stages.reconstruct import reconstruct
from brain2img.stages.train import train
from brain2img.stages.verify import verify

CONFIGS = Path(__file__).parents[2] / "configs"
SETTINGS = ["experiment=digit69/ridge", "decoder=deep", "space.pixels.size=8", "reconstructor.pixels.size=8",
            "adapter=subject_linear", "encoder=residual_mlp", "head=[pixels_linear]",
            "encoder.width=8", "encoder.n_blocks=1", "trainer.max_epochs=1", "split={kind: study, n_folds: 1}",
            "prior=affine", "prior_fit.source=training", "prior_fit.spaces=[pixels]", "conditions=[decoded,true]",
            "headline={space: pixels, metric: mse, direction: ''}", "baseline=ridge"]


def configuration(outputs: Path, raw: Path, *overrides: str, root: str = "base") -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(root, overrides=[f"paths.outputs={outputs}", f"raw={raw}", *SETTINGS, *overrides])


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Return a folder with the raw file and the outputs of a small chain, from prepare to reconstruct."""
    from scipy.io import savemat

    place, rng = tmp_path_factory.mktemp("chain"), np.random.default_rng(0)
    pictures = rng.integers(0, 255, (50, 64), dtype=np.uint8)
    responses = pictures / 255 @ rng.standard_normal((64, 30)) + rng.standard_normal((50, 30))
    labels = rng.integers(1, 3, (50, 1), dtype=np.uint8)
    savemat(place / "digits.mat", {"fmriTrn": responses[:40], "fmriTest": responses[40:], "stimTrn": pictures[:40],
                                   "stimTest": pictures[40:], "labelTrn": labels[:40], "labelTest": labels[40:]})
    cfg = configuration(place / "outputs", place / "digits.mat")
    for stage in (prepare, embed, train, predict, fit_prior, apply_prior, reconstruct):
        stage(cfg)
    return place


@pytest.fixture
def chain(made, tmp_path):
    """Return a copy of the chain, and a function that composes its configuration."""
    shutil.copytree(made, tmp_path / "chain")
    outputs = tmp_path / "chain" / "outputs"
    return outputs, lambda *overrides, **root: configuration(outputs, outputs.parent / "digits.mat", *overrides, **root)


def flip(path: Path, *, at: float = 0.6, n: int = 4) -> None:
    """Change a stretch of a file."""
    data = bytearray(path.read_bytes())
    start = int(len(data) * at)
    data[start:start + n] = bytes(b ^ 0x15 for b in data[start:start + n])
    path.write_bytes(bytes(data))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def swap_rows(path: Path) -> None:
    """Swap two stimuli of a table, which stays a whole one of the same size of rows."""
    table = pd.read_parquet(path)
    table.loc[[0, 1], "stimulus_id"] = table.loc[[1, 0], "stimulus_id"].to_numpy()
    table.to_parquet(path, index=False)


NEW = ("name=other",)


@pytest.mark.parametrize(("file", "damage", "stage", "overrides", "makes"), [
    ("prepared/*/*/signals_*.npy", flip, train, NEW, "prepare"),
    ("prepared/*/*/signals_*.npy", lambda path: flip(path, at=0.99), train, NEW, "prepare"),
    ("prepared/*/*/signals_*.npy", truncate, train, NEW, "prepare"),
    ("prepared/*/*/images.npy", flip, embed, ("space.pixels.size=4",), "prepare"),
    ("prepared/*/*/trials.parquet", swap_rows, train, NEW, "prepare"),
    ("prepared/*/*/spec.json", flip, train, NEW, "prepare"),
    ("cache/*/*/embeddings.npy", flip, train, NEW, "embed"),
    ("train/digit69/ridge/fold-*/best.ckpt", flip, predict, ("overwrite=true",), "train"),
    ("train/digit69/ridge/fold-*/normalisation_0.npz", flip, predict, ("overwrite=true",), "train"),
    ("predictions/digit69/ridge/decoded/pixels.npy", flip, apply_prior, ("overwrite=true",), "predict"),
    ("predictions/digit69/ridge/decoded/rows.parquet", swap_rows, reconstruct, ("overwrite=true",), "predict"),
    ("priors/digit69/ridge/pixels/run-0*/prior.safetensors", flip, apply_prior, ("overwrite=true",), "fit_prior"),
    ("predictions/digit69/ridge/with_prior/decoded-*/pixels.npy", flip, reconstruct, ("overwrite=true",),
     "apply_prior"),
    ("reconstructions/digit69/ridge/pixels/decoded/images/*.png", flip, evaluate, (), "reconstruct"),
    ("reconstructions/digit69/ridge/pixels/decoded/index.parquet", swap_rows, evaluate, (), "reconstruct"),
])
def test_what_was_damaged_stops_the_next_stage(chain, file, damage, stage, overrides, makes):
    outputs, cfg = chain
    path = next(iter(sorted(outputs.glob(file))))
    damage(path)
    with pytest.raises(ValueError, match=rf"{path.name}: expected the .* that (was|were) written, got") as error:
        stage(cfg(*overrides))
    assert str(path) in str(error.value)
    assert f"stage {makes} again with overwrite=true" in str(error.value)


def test_nothing_is_said_of_what_is_whole_wherever_it_was_moved(chain, caplog):
    outputs, _ = chain
    moved = outputs.rename(outputs.with_name("moved"))
    for stage in (train, predict):
        stage(configuration(moved, outputs.parent / "digits.mat", *NEW))
    evaluate(configuration(moved, outputs.parent / "digits.mat"))
    assert not [r for r in caplog.records if "hashes" in r.message or "changed since" in r.message]


def test_folders_of_an_older_version_are_read_with_one_warning(chain, caplog):
    outputs, cfg = chain
    prepared = next(outputs.glob("prepared/*/*"))
    manifest = json.loads((prepared / "manifest.json").read_text())
    (prepared / "manifest.json").write_text(json.dumps({k: v for k, v in manifest.items()
                                                        if k not in ("contents", "seal")}))
    (prepared / "contents.json").unlink()
    train(cfg(*NEW))
    said = [r.getMessage() for r in caplog.records if "no hashes of its files" in r.getMessage()]
    assert len(said) == 1
    assert f"verify.py folder={prepared} record=true" in said[0]
    verify(cfg(f"folder={prepared}", "record=true", root="verify"))
    flip(next(prepared.glob("signals_*.npy")))
    with pytest.raises(ValueError, match="expected the content that was written"):
        train(cfg("name=third"))


def test_a_cached_picture_that_is_damaged_is_made_anew(chain, caplog):
    outputs, cfg = chain
    whole = {path.name: np.asarray(Image.open(path)) for path in outputs.glob("cache/pictures/*/*.png")}
    paths = sorted(outputs.glob("cache/pictures/*/*.png"))
    truncate(paths[0])
    flip(paths[1])
    for folder in outputs.glob("reconstructions/*"):
        shutil.rmtree(folder)
    reconstruct(cfg())
    assert {path.name: np.asarray(Image.open(path)).tobytes() for path in outputs.glob("cache/pictures/*/*.png")} == {
        name: image.tobytes() for name, image in whole.items()}
    said = [r.getMessage() for r in caplog.records if "expected a whole PNG" in r.getMessage()]
    assert {path.name for path in paths[:2]} == {Path(line.split(": ")[0]).name for line in said}


def test_verify_names_all_that_is_damaged_missing_or_additional(chain, caplog):
    outputs, cfg = chain
    caplog.set_level("INFO")
    settings = cfg(root="verify")
    n = len(verify(settings))
    assert n == len([*outputs.rglob("manifest.json")])
    assert f"files of {n} finished folders are as they were written" in caplog.text
    caplog.clear()
    last = next(outputs.glob("train/*/*/fold-*/last.ckpt"))  # that no stage reads
    gone = next(outputs.glob("cache/*/*/stimuli.parquet"))
    spaces = outputs / "predictions/digit69/ridge/decoded/spaces.json"
    flip(last)
    gone.unlink()
    truncate(spaces)
    (spaces.parent / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"verify .*outputs: .* got 3 that are not"):
        verify(settings)
    lines = {r.levelname + " " + r.getMessage().split(". ")[0] for r in caplog.records}
    assert any(line.startswith(f"ERROR damaged: {last}: expected the content") for line in lines)
    assert any(line.startswith(f"ERROR damaged: {spaces}: expected the") for line in lines)
    assert f"ERROR missing: {gone}" in lines
    assert f"INFO additional: {spaces.parent / 'notes.txt'}, which no stage wrote" in lines
    verify(cfg(f"folder={outputs / 'prepared'}", root="verify"))


def test_verify_finds_a_changed_manifest(chain, caplog):
    outputs, cfg = chain
    path = next(outputs.glob("train/*/*/fold-*/manifest.json"))
    path.write_text(path.read_text().replace('"max_epochs": 1', '"max_epochs": 9'))
    with pytest.raises(ValueError, match="got 1 that are not"):
        verify(cfg(root="verify"))
    assert f"damaged: {path}: expected the manifest that was written" in caplog.text


def test_verify_of_nothing(tmp_path):
    cfg = configuration(tmp_path, tmp_path, root="verify")
    with pytest.raises(ValueError, match="expected a finished folder of a stage, or a folder of such, got none in it"):
        verify(cfg)


def test_verify_is_a_command(chain, command):
    outputs, _ = chain
    code, printed = command("verify", f"folder={outputs / 'prepared'}")
    assert code == 0, printed
    flip(next(outputs.glob("prepared/*/*/signals_*.npy")))
    code, printed = command("verify", f"folder={outputs / 'prepared'}")
    assert code == 1, printed
    assert "Traceback" not in printed
    assert "damaged: " in printed


"""Fixtures that several folders of tests share."""

from __future__ import annotations

import logging
import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

import brain2img
from brain2img.artifacts import EmbeddingCache, open_folder, write_array, write_json, write_table
from brain2img.command_line import main
from brain2img.data.datamodule import BrainData
from brain2img.data.normalisation import Normalisation
from brain2img.data.prepared import PreparedStudy, PreparedWriter
from brain2img.data.trials import Split
from brain2img.records import EmbeddingSpec, SignalSpec


@pytest.fixture
def composed(tmp_path: Path) -> Iterator:
    """Return a function that composes a command's configuration with overrides, results in the test's own folder."""
    GlobalHydra.instance().clear()

    def make(command: str, *overrides: str) -> DictConfig:
        return brain2img.compose(command, f"paths.outputs={tmp_path / 'outputs'}", *overrides)

    yield make
    GlobalHydra.instance().clear()


@pytest.fixture
def toy(tmp_path: Path):
    """Return a function that makes the data of a small study with a planted linear map, and its embeddings.

    Two subjects, 40 training, 10 validation and 10 test stimuli, each seen twice (test: four times); the space "code"
    has 4 dimensions.
    """

    def make(*, modality: str = "fmri", snr: float = 3.0, seed: int = 0, n_channels: int = 12, n_times: int = 1,
             normalisation: dict | None = None, split: dict | None = None, sessions: int = 1, **changes):
        folder = tmp_path / "outputs" / f"toy-{modality}-{seed}-{snr}-{sessions}"
        code, ids = _write_toy(folder, modality=modality, snr=snr, seed=seed, n_channels=n_channels, n_times=n_times,
                               sessions=sessions, **changes)
        cache = folder / "cache"
        if not (cache / "manifest.json").exists():
            stage = open_folder(cache, stage="embed", config={}, inputs={})
            write_array(cache / "embeddings.npy", code.astype("float32"))
            write_table(cache / "stimuli.parquet", pd.DataFrame({"stimulus_id": ids}))
            write_json(cache / "spec.json", EmbeddingSpec(name="code", shape=(4,), dtype="float32").to_json())
            stage.finish()
        data = BrainData(PreparedStudy(folder, finished=False), targets={"code": EmbeddingCache(cache)},
                         split=Split(**(split or {})), normalisation=Normalisation(**(normalisation or {})))
        data.fit_normalisation()
        return data

    return make


def _write_toy(folder: Path, *, modality: str, snr: float, seed: int, n_channels: int, n_times: int, sessions: int,
               offset: float = 0.0) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    splits = ["train"] * 40 + ["val"] * 10 + ["test"] * 10
    ids = [f"{split}-{i:03d}" for i, split in enumerate(splits)]
    code = rng.standard_normal((60, 4))
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "spec.json").exists():
        return code, ids
    writer = PreparedWriter(folder, study="toy")
    for subject in ("sub-01", "sub-02"):
        stimulus = np.repeat(np.arange(60), [4 if split == "test" else 2 for split in splits])
        trials = pd.DataFrame({"stimulus_id": [ids[i] for i in stimulus], "split": [splits[i] for i in stimulus],
                               "repetition": 0, "session": [str(i % sessions) for i in range(len(stimulus))]})
        weights = rng.standard_normal((4, n_channels * n_times))
        x = snr * code[stimulus] @ weights + rng.standard_normal((len(stimulus), n_channels * n_times))
        x = 5 + x + offset * trials["session"].astype(int).to_numpy()[:, None]
        times = {"sfreq": 100.0, "tmin": -0.1, "ch_names": [f"C{i}" for i in range(n_channels)],
                 "ch_types": ["eeg"] * n_channels} if modality != "fmri" else {}
        writer.add_subject(SignalSpec(subject=subject, modality=modality, units="a.u.", n_channels=n_channels,
                                      n_times=n_times, **times),
                           trials=trials, signals=[x.reshape(-1, n_channels, n_times)])
    writer.finish(pd.DataFrame({"stimulus_id": ids, "kind": "image", "concept": ids}),
                  images=rng.integers(0, 255, (60, 8, 8, 3), dtype=np.uint8))
    return code, ids


@pytest.fixture
def repair():
    """Return a function that changes the byte in the middle of a file and leaves its size and its time."""

    def change(path: Path) -> None:
        state = path.stat()
        if state.st_nlink > 1 or path.is_symlink():  # of a file that other tests read
            content = path.read_bytes()
            path.unlink()
            path.write_bytes(content)
        with path.open("r+b") as file:
            file.seek(state.st_size // 2)
            byte = file.read(1)[0]
            file.seek(state.st_size // 2)
            file.write(bytes([byte ^ 1]))
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
        assert path.stat().st_size == state.st_size

    return change


@pytest.fixture
def command(tmp_path: Path, monkeypatch, capsys):
    """Return a function that runs a command, or a script, in this process: its exit code and what it printed."""
    root = Path(__file__).parents[1]

    def call(script: str, *arguments: str) -> tuple[int, str]:
        GlobalHydra.instance().clear()
        HydraConfig.instance().cfg = None  # of a command before
        program = [str(root / script)] if script.endswith(".py") else ["brain2img", script]
        monkeypatch.setattr(sys, "argv", [*program, f"paths.outputs={tmp_path / 'outputs'}", *arguments])
        handlers, level = logging.getLogger().handlers[:], logging.getLogger().level
        monkeypatch.setenv("HYDRA_FULL_ERROR", "")  # so that it is as it was, when the test is over
        monkeypatch.delenv("HYDRA_FULL_ERROR")
        monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
        capsys.readouterr()
        code = 0
        try:
            runpy.run_path(program[0], run_name="__main__") if script.endswith(".py") else main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        except Exception as error:
            sys.excepthook(type(error), error, error.__traceback__)
            code = 1
        finally:
            logging.getLogger().handlers[:] = handlers
            logging.getLogger().setLevel(level)
            logging.captureWarnings(False)
            GlobalHydra.instance().clear()
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return call


@pytest.fixture
def digits(tmp_path: Path):
    """Return a function that writes a small file in the format of the digits 6/9 study, with a planted linear map."""

    def write(path: Path = tmp_path / "digits.mat", *, n_train: int = 40, n_test: int = 10, n_voxels: int = 30,
              side: int = 8, seed: int = 0, **changes) -> Path:
        from scipy.io import savemat

        rng = np.random.default_rng(seed)
        n = n_train + n_test
        images = np.zeros((n, side, side))
        labels = rng.integers(1, 3, n)
        for image, label in zip(images, labels, strict=True):
            row = rng.integers(1, side - 3)
            image[row:row + 3, (label - 1) * side // 2:(label - 1) * side // 2 + 3] = rng.integers(150, 255)
        images += np.random.default_rng([seed, 1]).integers(0, 40, images.shape) * (images == 0)  # all are different
        stimuli = images.transpose(0, 2, 1).reshape(n, -1)
        responses = (stimuli / 255) @ rng.standard_normal((side * side, n_voxels))
        responses += 0.3 * rng.standard_normal(responses.shape)
        values = {"fmriTrn": responses[:n_train], "fmriTest": responses[n_train:],
                  "stimTrn": stimuli[:n_train].astype(np.uint8), "stimTest": stimuli[n_train:].astype(np.uint8),
                  "labelTrn": labels[:n_train, None].astype(np.uint8),
                  "labelTest": labels[n_train:, None].astype(np.uint8)}
        values.update(changes)
        savemat(path, {k: v for k, v in values.items() if v is not None})
        return path

    return write

"""A small outputs tree, written by the real writers: fMRI of two subjects and EEG of one, as `evaluate` leaves it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import mne
import numpy as np
import pandas as pd
from PIL import Image

from brain2img import artifacts
from brain2img.artifacts import Captions, Predictions, open_folder, write_array, write_json, write_table
from brain2img.data.prepared import PreparedWriter
from brain2img.meaning import Meaning
from brain2img.metrics.attribute_accuracy import AttributeAccuracy
from brain2img.metrics.caption_attributes import CaptionAttributes
from brain2img.metrics.caption_overlap import CaptionOverlap
from brain2img.metrics.identification import Identification
from brain2img.metrics.mse import MSE
from brain2img.metrics.pixcorr import PixCorr
from brain2img.metrics.ranking import RankScore
from brain2img.metrics.ssim import SSIM
from brain2img.metrics.transductive_retrieval import TransductiveRetrieval
from brain2img.records import EmbeddingSpec, SignalSpec

N_TEST, N_TRAIN, WIDTH = 20, 12, 16
ROIS = ("V1", "V2", "V4", "LOC")


METRICS = (Identification(ways=(2, 50)), MSE(), SSIM(), PixCorr(), PixCorr(name="pcc"), AttributeAccuracy(),
           CaptionAttributes(), CaptionOverlap(), TransductiveRetrieval())


def meaning_of(metric: str) -> dict:
    """Return what a score of this name means, by the metric that has it."""
    if RankScore.is_name(metric):
        return asdict(RankScore.named(metric).meaning)
    found = [m for m in METRICS if metric in m.names or metric.partition("/")[0] in m.names]
    return asdict(found[0].meaning(metric) if found else Meaning(metric.replace("_", " ")))


def squares(n: int, rng: np.random.Generator, *, size: int = 32, grey: bool = False) -> np.ndarray:
    """Return images ``(n, size, size[, 3])`` uint8 of a coloured square on a coloured ground."""
    images = np.empty((n, size, size, 3), dtype=np.uint8)
    for image in images:
        image[:] = rng.integers(120, 255, 3)
        x, y = rng.integers(0, size // 2, 2)
        image[y:y + size // 2, x:x + size // 2] = rng.integers(0, 255, 3)
    return images[..., 0] if grey else images


def fmri_spec(subject: str, rng: np.random.Generator, *, n_voxels: int = 120) -> SignalSpec:
    ijk = rng.integers((30, 10, 25), (60, 35, 50), (n_voxels, 3))
    affine = np.array([[2.0, 0, 0, -90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
    return SignalSpec(subject=subject, modality="fmri", units="a.u.", n_channels=n_voxels, n_times=1, ijk=ijk,
                      affine=affine, volume_shape=(91, 109, 91), rois=tuple(rng.choice(ROIS, n_voxels)),
                      noise_ceiling=rng.uniform(0, 0.8, n_voxels))


def eeg_spec(subject: str) -> SignalSpec:
    montage = mne.channels.make_standard_montage("standard_1005").get_positions()["ch_pos"]
    names = mne.channels.make_standard_montage("standard_1020").ch_names
    names = [n for n in names if n in montage and n not in ("T3", "T4", "T5", "T6")][:63]
    return SignalSpec(subject=subject, modality="eeg", units="V", n_channels=63, n_times=60, sfreq=50.0, tmin=-0.2,
                      ch_names=tuple(names), ch_types=("eeg",) * 63, positions=np.array([montage[n] for n in names]))


def trials(n_train: int, n_test: int, *, repetitions: int = 2) -> pd.DataFrame:
    ids = [f"train-{i}" for i in range(n_train)] + [f"test-{i}" for i in range(n_test) for _ in range(repetitions)]
    return pd.DataFrame({"stimulus_id": ids, "repetition": 0,
                         "split": ["train"] * n_train + ["test"] * (n_test * repetitions)})


def finish(path: Path, stage: str, **config) -> None:
    folder = open_folder(path, stage=stage, config=config, inputs={})
    folder.finish()


class FakeOutputs:
    """Writes one study after the other below `root`, collects records, and writes the summary."""

    def __init__(self, root: Path, *, seed: int = 0) -> None:
        self.root = root
        self.rng = np.random.default_rng(seed)
        self.members: list[dict] = []
        self.baseline = "ridge"
        self.records: list[dict] = []
        self.differences: list[dict] = []
        self.scores: list[pd.DataFrame] = []
        self.images: dict[str, np.ndarray] = {}

    def prepare(self, study: str, specs: list[SignalSpec], *, size: int = 32, grey: bool = False,
                images: np.ndarray | None = None) -> str:
        path = f"prepared/{study}/tiny-00000000"
        work = open_folder(self.root / path, stage="prepare", config={"study": study}, inputs={})
        writer = PreparedWriter(work.work, study=study)
        table = trials(N_TRAIN, N_TEST)
        for spec in specs:
            signals = self.rng.normal(size=(len(table), spec.n_channels, spec.n_times))
            if spec.positions is not None:
                wave = np.exp(-((spec.times - 0.17) / 0.05) ** 2) - np.exp(-((spec.times - 0.1) / 0.03) ** 2)
                signals = signals - 40 * spec.positions[:, 1, None] / 0.1 * wave
                signals *= 1e-11 if spec.units == "T/m" else 1e-6
            writer.add_subject(spec, trials=table, signals=[signals.astype("float32")])
        ids = list(dict.fromkeys(table["stimulus_id"]))
        self.images[study] = squares(len(ids), self.rng, size=size, grey=grey) if images is None else images
        writer.finish(pd.DataFrame({"stimulus_id": ids, "kind": "image", "concept": ids, "attributes": None,
                                    "captions": [[i] for i in ids]}), images=self.images[study])
        work.finish()
        return path

    def predict(self, name: str, subjects: list[str], embeddings: np.ndarray, *, space: str, repeats: int = 1) -> str:
        path = f"predictions/{name}"
        work = open_folder(self.root / path, stage="predict", config={"name": name}, inputs={})
        rows = pd.DataFrame([{"subject": s, "stimulus_id": f"test-{i}", "n_averaged": 2, "draw": r, "trial_ids": [0]}
                             for s in subjects for r in range(repeats) for i in range(N_TEST)])
        write_array(work.work / f"{space}.npy", embeddings.astype("float32"))
        Predictions.write(work.work, rows=rows, specs={space: EmbeddingSpec(name=space, shape=embeddings.shape[1:],
                                                                            dtype="float32")})
        work.finish()
        return path

    def reconstruct(self, name: str, subjects: list[str], images: np.ndarray, *, n: int = N_TEST) -> str:
        """Write pictures of the first `n` test images of each subject."""
        path = f"reconstructions/{name}"
        work = open_folder(self.root / path, stage="reconstruct", config={"name": name}, inputs={})
        index = pd.DataFrame([{"subject": s, "stimulus_id": f"test-{i}"} for s in subjects for i in range(n)])
        index["file"] = [f"{i}.png" for i in range(len(index))]
        for file, image in zip(index["file"], images, strict=True):
            Image.fromarray(image).save(work.work / file)
        write_table(work.work / "index.parquet", index)
        work.finish()
        return path

    def caption(self, name: str, subjects: list[str], *, n: int = N_TEST, word: str = "a decoded thing") -> str:
        """Write a caption that names subject and stimulus for the first `n` test images of each subject."""
        path = f"captions/{name}"
        work = open_folder(self.root / path, stage="caption", config={"name": name}, inputs={})
        rows = pd.DataFrame([{"subject": s, "stimulus_id": f"test-{i}", "run": 0, "draw": 0}
                             for s in subjects for i in range(n)])
        Captions.write(work.work, rows=rows, captions=[f"{word} of {r.subject}, {r.stimulus_id}"
                                                       for r in rows.itertuples()])
        work.finish()
        return path

    def train(self, name: str, *, epochs: int = 6) -> str:
        path = f"train/{name}/fold-0_seed-7"
        work = open_folder(self.root / path, stage="train", config={"trainer": {"seed": 7}}, inputs={})
        (work.work / "logs").mkdir()
        lines = []
        for epoch in range(epochs):
            lines.append({"epoch": epoch, "step": 2 * epoch, "train/loss": 3 / (epoch + 1)})
            lines.append({"epoch": epoch, "step": 2 * epoch + 1, "val/loss": 3.2 / (epoch + 1), "val/top1": epoch / 10})
        pd.DataFrame(lines).to_csv(work.work / "logs" / "metrics.csv", index=False)
        work.finish()
        return path

    def record(self, study: str, subject: str, decoder: str, value: float, **more) -> None:
        modality = "eeg" if "eeg" in study else "fmri"
        self.records.append({
            "study": study, "subject": subject, "modality": modality, "decoder": decoder, "condition": "decoded",
            "of": "images" if more.get("space") == "" else "embeddings",
            "generator": "pixels" if more.get("space") == "" else "",
            "space": "clip", "metric": "top1", "direction": "image_from_brain", "gallery": N_TEST, "repetitions": 2,
            "transductive": False, "circular": False, "value": value, "low": value - 0.031, "high": value + 0.032,
            "n": N_TEST, "chance": 0.05, "chance_kind": "analytic", **more})

    def write(self, name: str = "tiny", **tables: pd.DataFrame) -> Path:
        folder = self.root / "scores" / name
        work = open_folder(folder, stage="evaluate", config={"name": name}, inputs={})
        write_json(work.work / "summary.json", {
            "name": name, "created": "2026-11-22T06:00:00+0000", "seconds": 12.5, "git": "abcdef123456",
            "command": ["pipeline", "experiment=demo", "study.label=two words"],
            "versions": artifacts.versions(), "baseline": self.baseline,
            "records": [{**meaning_of(r["metric"]), **r} for r in self.records],
            "differences": [{"gallery": 0, "transductive": False, **meaning_of(d["metric"]), **d}
                            for d in self.differences],
            "members": self.members, "outputs": "../.."})
        if self.scores:
            scores = pd.concat(self.scores, ignore_index=True)
            meanings = pd.DataFrame([meaning_of(metric) for metric in scores["metric"]], index=scores.index)
            write_table(work.work / "scores.parquet", pd.concat([scores, meanings], axis=1))
        for key, table in tables.items():
            write_table(work.work / f"{key}.parquet", table)
        return folder

    def scenes(self, study: str, specs: list[SignalSpec], deep: str, *, images: np.ndarray | None = None) -> None:
        """Add a study with a deep decoder, ridge, the ceiling, controls, reconstructions and logs."""
        subjects = [spec.subject for spec in specs]
        prepared = self.prepare(study, specs, images=images)
        one = self.rng.normal(size=(N_TEST, WIDTH))
        true = np.tile(one, (len(subjects), 1))
        seen = np.tile(self.images[study][N_TRAIN:], (len(subjects), 1, 1, 1))
        for decoder, noise in ((deep, 1.0), ("ridge", 1.6)):
            label = f"{study}-{decoder}"
            decoded = true + noise * self.rng.normal(size=true.shape)
            blurred = np.clip(seen + 40 * noise * self.rng.normal(size=seen.shape), 0, 255).astype(np.uint8)
            self.members.append({
                "experiment": "demo", "study": study, "modality": specs[0].modality, "decoder": decoder,
                "headline": {"space": "clip", "metric": "top1", "direction": "image_from_brain"}, "subjects": subjects,
                "prepared": prepared, "run": self.train(label).rsplit("/", 1)[0] if decoder != "ridge" else None,
                "predictions": {"decoded": self.predict(label, subjects, decoded, space="clip"),
                                "true": self.predict(f"{label}-true", subjects, true, space="clip")},
                "reconstructions": {"pixels": {"decoded": self.reconstruct(label, subjects, blurred),
                                               "true": self.reconstruct(f"{label}-true", subjects, seen)}},
                "seconds": {"prepare": 1.2, "train": 3.4}})
            base = 0.43 if decoder != "ridge" else 0.39
            for subject in [*subjects, "mean"]:
                self.record(study, subject, decoder, base)
                self.record(study, subject, decoder, 0.71, metric="top5", chance=0.25)
                self.record(study, subject, decoder, 0.4, direction="brain_from_image")
                self.record(study, subject, decoder, 0.45, metric="ssim", space="", direction="", gallery=0,
                            chance=0.31, chance_kind="re-pairing")
                for condition in ("noise", "shuffled", "mean"):
                    self.record(study, subject, decoder, 0.05, condition=condition)
                self.record(study, subject, decoder, 0.99, condition="true")
            self.differences += [{
                "study": study, "subject": s, "of": "embeddings", "generator": "",
                "metric": "top1", "space": "clip", "direction": "image_from_brain",
                "decoder": deep, "baseline": "ridge", "value": 0.04, "low": 0.012, "high": 0.068, "n": N_TEST}
                for s in [*subjects, "mean"] if decoder == deep]
        for subject in [*subjects, "mean"]:
            self.record(study, subject, "ceiling", 0.97, space="generator")


def rewrite(folder: Path, **changes) -> None:
    """Change keys of ``summary.json``."""
    path = folder / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

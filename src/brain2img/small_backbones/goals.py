"""How good the small backbones are on scenes of concepts that none of them has seen: the ceiling of what follows."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from brain2img.artifacts import write_json
from brain2img.captioners.prefix import PrefixLanguageModel
from brain2img.data.dataset import chunks
from brain2img.data.pictures import to_uint8
from brain2img.interfaces import Space
from brain2img.metrics.attribute_accuracy import AttributeAccuracy
from brain2img.metrics.caption_attributes import name_accuracy
from brain2img.metrics.identification import Identification
from brain2img.metrics.pixcorr import PixCorr
from brain2img.metrics.retrieval import Retrieval
from brain2img.pretrained import locate
from brain2img.reconstructors.kandinsky import Kandinsky
from brain2img.records import Decoded, Stimuli
from brain2img.simulate import scenes
from brain2img.spaces.open_clip import OpenCLIP
from brain2img.spaces.timm import TimmModel
from brain2img.spaces.vae import VAELatents
from brain2img.stages.progress import progress

log = logging.getLogger(__name__)

GOALS: dict[str, float] = {
    "clip: caption found among unique ones, from the image": 0.85,
    "decoder: two-way identification by the judge": 0.95,
    "decoder: PixCorr": 0.60,
    "decoder: object named right by the judge": 0.70,
    "captioner: object and colour named right": 0.85}


def scene_stimuli(pool: str, n: int, *, images: np.ndarray | None = None) -> Stimuli:
    """Return the first `n` scenes of a pool as stimuli; drawn when read, unless `images` ``(n, h, w, 3)`` are given."""
    found = [scenes.scene(stimulus) for stimulus in scenes.ids(pool, n)]
    table = pd.DataFrame({
        "stimulus_id": [s.stimulus_id for s in found], "kind": "image", "concept": [s.concept for s in found],
        "category": [s.category for s in found], "captions": [list(s.captions) for s in found],
        "attributes": [s.attributes for s in found]})
    return Stimuli(table, (lambda rows: np.asarray(images[list(rows)])) if images is not None else
                   (lambda rows: np.stack([scenes.render(found[i]) for i in rows])))


def unique_captions(stimuli: Stimuli, n: int) -> list[int]:
    """Return the rows of the first n stimuli whose first caption no earlier one has."""
    first = [texts[0] for texts in stimuli.table["captions"]]
    seen: set[str] = set()
    return [i for i, text in enumerate(first) if text not in seen and not seen.add(text)][:n]  # type: ignore[func-returns-value]


def measure(weights: Path | None, stimuli: Stimuli, *, reconstructor: Mapping[str, Any], n_images: int = 200,
            seed: int = 0) -> dict[str, float]:
    """Return what each backbone reaches on `stimuli`, from their true embeddings.

    Parameters
    ----------
    weights
        Folder of the backbones; None for those of the package.
    stimuli
        Scenes with unique captions, of concepts the backbones have not seen.
    reconstructor
        Settings of `Kandinsky`: steps, guidance, scheduler.
    n_images
        Scenes to render.
    seed
        Of the noise that pictures begin with, and of the shuffled control.

    Returns
    -------
    dict
        Name -> share in [0, 1] or correlation.
    """
    def at(name: str) -> str:
        return locate(name) if weights is None else str(weights / name)

    rows = range(len(stimuli))
    ids, known = tuple(stimuli.table["stimulus_id"]), list(stimuli.table["attributes"])
    image, text = (OpenCLIP(model=at("scenes_clip"), of=of, n_captions=None if of == "image" else 1, name="clip")
                   for of in ("image", "text"))
    seen, read = (_embed(space, stimuli) for space in (image, text))
    found = Decoded(truth=np.arange(len(stimuli)), gallery_ids=ids, embeddings={"clip": seen}, gallery={"clip": read},
                    specs={"clip": image.spec(stimuli)})
    table = Retrieval(ks=[1]).score(found).query("direction == 'image_from_brain'")
    result = {"clip: caption found among unique ones, from the image": float(table["value"].mean())}

    for word, field, options in (("object", "kind", scenes.KINDS), ("colour", "colour", scenes.COLOURS)):
        result[f"clip: {word} found among captions that differ in it alone"] = _found(
            seen, text, stimuli, field=field, options=list(options))

    dino = TimmModel(model=at("scenes_dino"), name="dino")
    for name, embeddings in (("dino", _embed(dino, stimuli)), ("pixels", stimuli.images())):
        nearest = _nearest(embeddings.reshape(len(stimuli), -1).astype(np.float64))
        for word, field in (("object", "kind"), ("background", "background")):
            result[f"{name}: nearest other scene has the same {word}"] = float(
                np.mean([known[i][field] == known[j][field] for i, j in enumerate(nearest)]))

    judge = TimmModel(model=at("scenes_judge"), output="logits", name="judge_attributes")
    features = TimmModel(model=at("scenes_judge"), name="judge")
    result["judge: object of the true image named right"] = _kind(judge, stimuli.images(), stimuli)

    captions = PrefixLanguageModel(model=at("scenes_captioner"), space="clip").caption({"clip": torch.from_numpy(seen)})
    right = name_accuracy(captions, known)
    result["captioner: object named right"], result["captioner: colour named right"] = right["kind"], right["colour"]
    result["captioner: object and colour named right"] = right["kind_and_colour"]

    few = list(rows)[:n_images]
    true = stimuli.images(few)
    latents = VAELatents(model=at("scenes_decoder"), subfolder="movq", name="vae")
    decoder = Kandinsky(model=at("scenes_decoder"), **reconstructor)
    decoder.check({"clip": image.spec(stimuli), "vae": latents.spec(stimuli)})
    made = np.concatenate([_render(decoder, seen[part], seed=seed, first=part[0]) for part in progress(
        chunks(len(few), 50), description="render")])
    order = np.roll(np.random.default_rng(seed).permutation(len(few)), 1)
    for name, truth in (("", np.arange(len(few))), (", shuffled", order)):
        one = Decoded(truth=truth, gallery_ids=ids[:len(few)], images=made, gallery_images=true)
        result[f"decoder: PixCorr{name}"] = float(PixCorr().score(one)["value"].mean())
    shown = Stimuli(stimuli.table.iloc[few], lambda r: made[list(r)])
    real = Stimuli(stimuli.table.iloc[few], lambda r: true[list(r)])
    spec = features.spec(stimuli)
    two_way = Identification(ways=[2], of="images", space="judge").score(Decoded(
        truth=np.arange(len(few)), gallery_ids=ids[:len(few)], features={"judge": _embed(features, shown)},
        gallery_features={"judge": _embed(features, real)}, feature_specs={"judge": spec}))
    result["decoder: two-way identification by the judge"] = float(
        two_way.query("direction == 'image_from_brain'")["value"].mean())
    result["decoder: object named right by the judge"] = _kind(judge, made, shown)
    return result


def _choose(stimuli: Stimuli, rows: list[int]) -> Stimuli:
    return Stimuli(stimuli.table.iloc[rows].reset_index(drop=True), lambda of: stimuli.images([rows[i] for i in of]))


def _embed(space: Space, stimuli: Stimuli) -> np.ndarray:
    parts = chunks(len(stimuli), 100)
    return np.concatenate([space.embed(stimuli, part) for part in parts])


def _found(seen: np.ndarray, text: Space, stimuli: Stimuli, *, field: str, options: list[str], n: int = 200) -> float:
    """Return the share of the first n images nearest, of captions that differ in one field alone, to the right one."""
    some = [scenes.scene(stimulus) for stimulus in stimuli.table["stimulus_id"][:n]]
    changed: list[dict[str, Any]] = [{field: option} for option in options]
    asked = pd.DataFrame({"captions": [[dataclasses.replace(one, **change).captions[0]] for one in some
                                       for change in changed]})
    read = _embed(text, Stimuli(asked, stimuli.read_images)).reshape(len(some), len(options), -1)
    similarity = np.einsum("nd,nkd->nk", seen[:len(some)], read / np.linalg.norm(read, axis=-1, keepdims=True))
    return float((similarity.argmax(axis=1) == [options.index(getattr(one, field)) for one in some]).mean())


def _nearest(x: np.ndarray) -> np.ndarray:
    """Return the row ``(N,)`` most like each row of ``(N, D)``, by the cosine of deviations from the mean."""
    x = x - x.mean(axis=0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    similarity = x @ x.T
    np.fill_diagonal(similarity, -np.inf)
    return similarity.argmax(axis=1)


def _kind(judge: Space, images: np.ndarray, stimuli: Stimuli) -> float:
    """Return the share of pictures ``(n, h, w, 3)`` uint8 whose main object the judge names right."""
    n = len(stimuli)
    shown = Stimuli(stimuli.table, lambda rows: images[list(rows)])
    read = {judge.name: _embed(judge, shown)}
    found = Decoded(truth=np.arange(n), gallery_ids=tuple(stimuli.table["stimulus_id"]), features=read,
                    gallery_features=read, feature_specs={judge.name: judge.spec(stimuli)},
                    gallery_attributes=list(stimuli.table["attributes"]))
    table = AttributeAccuracy(space=judge.name, of="images").score(found)
    return float(table.query("metric.str.endswith('/kind')")["value"].mean())


def _render(decoder: Kandinsky, embeddings: np.ndarray, *, seed: int, first: int) -> np.ndarray:
    """Return pictures ``(n, h, w, 3)`` uint8 of embeddings ``(n, D)``, the i-th from the noise of `first` + i."""
    generators = [torch.Generator().manual_seed(seed * 1_000_003 + first + i) for i in range(len(embeddings))]
    made = decoder.reconstruct({"clip": torch.from_numpy(embeddings)}, generators=generators)
    return to_uint8(made.permute(0, 2, 3, 1).numpy(), expected="0..1", what="pictures of the small decoder")


def report(weights: Path | None, out: Path, *, n_check: int, reconstructor: Mapping[str, Any]) -> None:
    """Measure on unseen validation concepts and on the test stimuli; log and write a table beside the goals."""
    table: dict[str, dict[str, float]] = {}
    for pool, n in (("val", n_check), ("test", min(n_check, 200))):
        stimuli = scene_stimuli(pool, n + n // 4 if pool == "val" else n)
        chosen = _choose(stimuli, unique_captions(stimuli, n))
        table[f"{len(chosen)} {pool}"] = measure(weights, chosen, reconstructor=reconstructor)
    names = list(next(iter(table.values())))
    write_json(out, {"goals": GOALS, "measured": table})
    log.info("%-58s %6s %s", "from true embeddings of scenes of unseen concepts", "goal", " ".join(
        f"{name:>9}" for name in table))
    for name in names:
        log.info("%-58s %6s %s", name, GOALS.get(name, ""), " ".join(f"{values[name]:9.3f}"
                                                                    for values in table.values()))

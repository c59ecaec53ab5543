"""Trains the small backbones of the simulated study, and measures them against their goals."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from brain2img.artifacts import ArrayWriter, claim, read_array, write_json
from brain2img.data.dataset import chunks
from brain2img.interfaces import Space
from brain2img.pretrained import FOLDER, write_condition
from brain2img.records import Stimuli
from brain2img.simulate import scenes
from brain2img.small_backbones.captioner import train_captioner
from brain2img.small_backbones.generator import train_autoencoder, train_denoiser
from brain2img.small_backbones.goals import report, scene_stimuli
from brain2img.small_backbones.spaces import train_clip, train_dino, train_judge
from brain2img.spaces.attributes import Attributes
from brain2img.spaces.open_clip import OpenCLIP
from brain2img.spaces.vae import VAELatents
from brain2img.stages.build import plain
from brain2img.stages.progress import progress
from brain2img.stages.workspace import folder_of
from brain2img.step_training import StepPlan

log = logging.getLogger(__name__)
WEIGHTS = {"clip": "scenes_clip", "dino": "scenes_dino", "judge": "scenes_judge", "autoencoder": "scenes_decoder",
           "denoiser": "scenes_decoder", "captioner": "scenes_captioner"}
CHUNK = 500


def train_small_backbones(cfg: DictConfig) -> Path:
    """Train every part asked for, go on where an earlier call stopped, and copy the weights into the package if asked.

    Returns
    -------
    pathlib.Path
        Folder of the weights: ``outputs/<name>/weights``.

    Raises
    ------
    ValueError
        If a part is unknown, or needs one that was not trained yet.
    """
    unknown = sorted(set(cfg.parts) - set(WEIGHTS))
    if unknown:
        raise ValueError(f"parts: expected some of {list(WEIGHTS)}, got {unknown}. Correct parts=[...].")
    workshop = _Workshop(cfg)
    claimed = claim(workshop.folder)  # until the end
    for part in (p for p in WEIGHTS if p in cfg.parts):
        if workshop.is_done(part):
            log.info("%s: trained already (%s)", part, workshop.out(part))
            continue
        log.info("train %s", part)
        workshop.train(part)
    if all(workshop.is_done(part) for part in WEIGHTS):
        report(workshop.folder / "weights", workshop.folder / "goals.json", n_check=cfg.n_check,
               reconstructor=plain(cfg.reconstructor))
    if cfg.install:
        for name in sorted({WEIGHTS[part] for part in cfg.parts}):
            shutil.rmtree(FOLDER / name, ignore_errors=True)
            shutil.copytree(workshop.folder / "weights" / name, FOLDER / name)
            log.info("installed %s", FOLDER / name)
    claimed.release()
    return workshop.folder / "weights"


class _Workshop:
    """Scenes, intermediate embeddings, checkpoints and weights of one call."""

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg
        self.folder = folder_of(cfg, cfg.name)

    def out(self, part: str) -> Path:
        name = self.folder / "weights" / WEIGHTS[part]
        return name / "movq" if part == "autoencoder" else name

    def is_done(self, part: str) -> bool:
        return (self.folder / "work" / part / "done.json").exists()

    def train(self, part: str) -> None:
        """Train one part; what it needs of others is embedded first."""
        work, out = self.folder / "work" / part, self.out(part)
        plan = StepPlan(**{"seed": self.cfg.seed, **plain(self.cfg[part])})
        given: dict[str, Any] = {"plan": plan, "work": work, "out": out}
        actions: dict[str, Callable[[], None]] = {
            "clip": lambda: self._clip(**given),
            "dino": lambda: train_dino(images=self.images, **given),
            "judge": lambda: self._judge(**given),
            "autoencoder": lambda: train_autoencoder(images=self.images, **given),
            "denoiser": lambda: self._denoiser(**given),
            "captioner": lambda: train_captioner(
                embeddings=self.embeddings(self.clip), captions=self.captions,
                pairs=(list(scenes.COLOURS), list(scenes.KINDS)), tokenizer_folder=self.out("clip"),
                condition_spec=self.clip.spec(self.stimuli), **given)}
        actions[part]()
        write_json(work / "done.json", plain(self.cfg[part]))

    def _clip(self, **given: Any) -> None:
        shared = [f"{known['background']} {known['n_objects']}" for known in self.stimuli.table["attributes"]]
        coloured = [f"{group} {known['colour']}" for group, known in zip(
            shared, self.stimuli.table["attributes"], strict=True)]
        train_clip(images=self.images, captions=self.captions, alike=[shared, coloured],
                   words=(list(scenes.COLOURS), list(scenes.KINDS)), **given)

    def _judge(self, **given: Any) -> None:
        known = Attributes()
        train_judge(images=self.images, attributes=known.embed(self.stimuli, range(len(self.stimuli))),
                    labels=known.spec(self.stimuli).labels, **given)

    def _denoiser(self, **given: Any) -> None:
        self._need("autoencoder", of="denoiser")
        def latents() -> Space:
            return VAELatents(model=str(self.out("denoiser")), subfolder="movq", name="vae")

        train_denoiser(latents=self.embeddings(latents()), embeddings=self.embeddings(self.clip), **given)
        # of the autoencoder as it now stands in the pipeline, which writes its configuration anew
        write_condition(self.out("denoiser"), condition=self.clip.spec(self.stimuli),
                        latents=latents().spec(self.stimuli))

    @property
    def clip(self) -> Space:
        """scenes_clip as just trained."""
        self._need("clip", of="decoder and captioner")
        return OpenCLIP(model=str(self.out("clip")))

    def _need(self, part: str, *, of: str) -> None:
        if not self.is_done(part):
            raise ValueError(f"parts: expected {part} to be trained before {of}, got none in {self.folder}. "
                             f"Add {part} to parts=[...].")

    @cached_property
    def stimuli(self) -> Stimuli:
        """The scenes of the pool "backbone"."""
        return scene_stimuli("backbone", self.cfg.n_scenes, images=self.images)

    @property
    def captions(self) -> list[list[str]]:
        """Paraphrases of every scene."""
        return list(self.stimuli.table["captions"])

    @cached_property
    def images(self) -> np.ndarray:
        """``(n_scenes, 64, 64, 3)`` uint8, drawn once."""
        folder = self.folder / "scenes"
        if not (folder / f"{self.cfg.n_scenes}.npy").exists():
            folder.mkdir(parents=True, exist_ok=True)
            writer = ArrayWriter(folder, {str(self.cfg.n_scenes): ((self.cfg.n_scenes, 64, 64, 3), "uint8")})
            left = [part for part in chunks(self.cfg.n_scenes, CHUNK) if part[-1] >= writer.done]
            with ProcessPoolExecutor() as pool:
                drawn = pool.map(_draw, left)
                for _ in progress(left, description="draw scenes"):
                    writer.write({str(self.cfg.n_scenes): next(drawn)})
            writer.close()
        return read_array(folder / f"{self.cfg.n_scenes}.npy")

    def embeddings(self, space: Space) -> np.ndarray:
        """Return ``(n_scenes, *shape)`` float32 of the scenes, embedded once."""
        folder = self.folder / "embeddings" / f"{space.name}-{space.uid()}"
        name = str(self.cfg.n_scenes)
        if not (folder / f"{name}.npy").exists():
            folder.mkdir(parents=True, exist_ok=True)
            spec = space.spec(self.stimuli)
            writer = ArrayWriter(folder, {name: ((self.cfg.n_scenes, *spec.shape), "float32")})
            left = [part for part in chunks(self.cfg.n_scenes, CHUNK) if part[-1] >= writer.done]
            for part in progress(left, description=f"embed {space.name}"):
                writer.write({name: space.embed(self.stimuli, part)})
            writer.close()
        return np.array(read_array(folder / f"{name}.npy"))


def _draw(rows: list[int]) -> np.ndarray:
    """Draw scenes of the pool "backbone" by index."""
    return np.stack([scenes.render(scenes.scene(stimulus)) for stimulus in
                     scenes.ids("backbone", len(rows), start=rows[0])])

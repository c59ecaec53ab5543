from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from brain2img.captioners.prefix import PrefixLanguageModel
from brain2img.pretrained import FOLDER
from brain2img.reconstructors.kandinsky import Kandinsky
from brain2img.simulate import scenes
from brain2img.small_backbones.goals import scene_stimuli, unique_captions
from brain2img.small_backbones.train import WEIGHTS, train_small_backbones
from brain2img.spaces.open_clip import OpenCLIP
from brain2img.spaces.timm import TimmModel
from brain2img.spaces.vae import VAELatents
from brain2img.step_training import log_shares

CONFIGS = FOLDER.parents[2] / "configs"


@pytest.fixture
def configured(tmp_path):
    """A configuration that trains every backbone for two steps."""
    def make(**changed):
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return compose("train_small_backbones", overrides=[
                f"paths.outputs={tmp_path}", "n_scenes=64", "n_check=12",
                *[f"{part}.steps=2" for part in ("clip", "dino", "judge", "autoencoder", "denoiser", "captioner")],
                "reconstructor.n_steps=1", *[f"{key}={value}" for key, value in changed.items()]])
    return make


def test_backbones_never_see_a_concept_or_scene_of_validation_or_test():
    seen = {scenes.scene(i) for i in scenes.ids("backbone", 3000)}
    ids, concepts = {s.stimulus_id for s in seen}, {s.concept for s in seen}
    shown = concepts | {f"{s.second_colour} {s.second_kind}" for s in seen if s.second_kind}
    for pool, n in (("val", 1000), ("test", 200)):
        others = {scenes.scene(i) for i in scenes.ids(pool, n)}
        assert not ids & {s.stimulus_id for s in others}
        assert not shown & {s.concept for s in others}
        assert not shown & set(scenes.concepts(pool))
    assert {s.kind for s in seen} == set(scenes.KINDS)


def test_all_parts_are_trained_saved_and_loaded_by_the_real_classes(configured, tmp_path, caplog):
    cfg = configured(parts="[clip,dino,judge,autoencoder,denoiser]")
    weights = train_small_backbones(cfg)
    stimuli = scene_stimuli("val", 4)
    clip = OpenCLIP(model=str(weights / "scenes_clip"))
    assert clip.embed(stimuli, range(4)).shape == (4, 128)
    assert TimmModel(model=str(weights / "scenes_dino"), output="tokens").spec(stimuli).shape == (65, 64)
    judge = TimmModel(model=str(weights / "scenes_judge"), output="logits").spec(stimuli)
    assert judge.shape == (len(judge.labels),)
    first = scenes.scene("backbone-000000")
    assert {f"kind={first.kind}", f"colour={first.colour}", "x"} <= set(judge.labels)
    decoder = Kandinsky(model=str(weights / "scenes_decoder"), low_level_space="vae", n_steps=2, size=64)
    latents = VAELatents(model=str(weights / "scenes_decoder"), subfolder="movq", name="vae")
    decoder.check({"clip": clip.spec(stimuli), "vae": latents.spec(stimuli)})
    with pytest.raises(ValueError, match=r"expected as condition the embeddings it was trained on .* got space 'dino'"):
        decoder.check({"clip": TimmModel(model=str(weights / "scenes_dino")).spec(stimuli),
                       "vae": latents.spec(stimuli)})
    made = decoder.reconstruct({"clip": torch.from_numpy(clip.embed(stimuli, [0])),
                                "vae": torch.from_numpy(latents.embed(stimuli, [0]))},
                               generators=[torch.Generator().manual_seed(0)])
    assert made.shape == (1, 3, 64, 64)
    assert not any(str(tmp_path) in path.read_text() for path in weights.rglob("*.json")), "no paths of this machine"
    assert not (tmp_path / "backbones" / "goals.json").exists()

    checkpoint = tmp_path / "backbones" / "work" / "clip" / "checkpoint.pt"
    before = checkpoint.stat().st_mtime_ns
    train_small_backbones(configured())  # what is trained stays; the captioner is new, and all are measured
    assert checkpoint.stat().st_mtime_ns == before
    assert PrefixLanguageModel(model=str(weights / "scenes_captioner")).caption(
        {"clip": torch.from_numpy(clip.embed(stimuli, [0, 1]))})
    goals = json.loads((tmp_path / "backbones" / "goals.json").read_text())
    assert set(goals["goals"]) <= set(goals["measured"]["12 val"])
    assert all(-1 <= value <= 1 for table in goals["measured"].values() for value in table.values())


def test_latents_have_unit_variance_and_the_decoder_knows(configured, tmp_path):
    """Folding the standardisation into the 1 x 1 convolutions changes no picture."""
    from brain2img.small_backbones.generator import _Autoencoder, as_signed

    torch.manual_seed(0)
    model = _Autoencoder()
    images = scene_stimuli("backbone", 32).images()
    model.statistics.momentum = 1.0
    model.train()(as_signed(images[:16]), torch.Generator().manual_seed(0))
    model.eval()
    movq = model.fold(images)
    x = as_signed(images)
    with torch.no_grad():
        latents = movq.encode(x).latents
        before = model.movq.decode(model.statistics(model.movq.encode(x).latents), force_not_quantize=True).sample
        after = movq.decode(latents, force_not_quantize=True).sample
    np.testing.assert_allclose(latents.mean((0, 2, 3)).numpy(), 0, atol=1e-4)
    np.testing.assert_allclose(latents.std((0, 2, 3)).numpy(), 1, rtol=1e-3)
    np.testing.assert_allclose(after.numpy(), before.numpy(), atol=1e-4)


def test_colours_learnt_with_their_frequency_added_are_not_guessed_from_the_kind():
    """A kind with two colours and another with two others: what is learnt beside log shares is even over all four."""
    kind, colour = torch.eye(2)[[0, 0, 0, 1]], torch.eye(4)[[0, 0, 1, 3]]
    found = log_shares(kind, colour)
    torch.testing.assert_close(found.exp(), torch.tensor([[2 / 3, 1 / 3, 1e-4, 1e-4], [1e-4, 1e-4, 1e-4, 1.0]]))
    # the prior alone already answers as well as the kind allows, so nothing is left to gain from it
    guess = torch.zeros(4, 4, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(guess + found[[0, 0, 0, 1]], colour.argmax(1))
    gradient, = torch.autograd.grad(loss, guess)
    torch.testing.assert_close(gradient[:3].sum(0), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(gradient[3], torch.zeros(4), atol=1e-3, rtol=0)


def test_messages(configured):
    with pytest.raises(ValueError, match=r"parts: expected some of .*'clip'.*, got \['clap'\]"):
        train_small_backbones(configured(parts="[clap]"))
    with pytest.raises(ValueError, match="expected autoencoder to be trained before denoiser"):
        train_small_backbones(configured(parts="[denoiser]"))


def test_unique_captions():
    stimuli = scene_stimuli("val", 300)
    rows = unique_captions(stimuli, 200)
    first = [stimuli.table["captions"][i][0] for i in rows]
    assert len(rows) == len(set(first)) == 200
    assert rows == sorted(rows)


SHIPPED = sorted(path.name for path in FOLDER.iterdir() if path.is_dir() and not path.name.startswith("_"))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_are_small_whole_and_safe(name):
    assert name in WEIGHTS.values()
    files = [f for f in (FOLDER / name).rglob("*") if f.is_file()]
    assert any(f.suffix == ".safetensors" for f in files)
    assert all(f.suffix in (".safetensors", ".json") for f in files)
    assert all(f.stat().st_size <= 8e6 for f in files)
    assert sum(f.stat().st_size for f in FOLDER.rglob("*.safetensors")) <= 30e6

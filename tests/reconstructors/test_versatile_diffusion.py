"""Versatile Diffusion on a small pipeline of diffusers that was saved to the disk."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from torch.nn.functional import interpolate

from brain2img.interfaces import Reconstructor
from brain2img.reconstructors.pixels import PixelDecoding
from brain2img.reconstructors.versatile_diffusion import VersatileDiffusion, tiny_pipeline
from brain2img.records import EmbeddingSpec
from brain2img.stages.build import build

N = 3


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(N, *shape, generator=torch.Generator().manual_seed(seed))


EMBEDDINGS = {"clip": 3 * random(257, 16, seed=1), "clip_text": 2 * random(12, 16, seed=2),
              "vae": random(4, 16, 16, seed=3), "pixels": random(3, 8, 8, seed=4)}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Return the folder of a pipeline as it is published: two UNets that are not merged yet."""
    from diffusers import VersatileDiffusionPipeline
    from diffusers.pipelines.deprecated.versatile_diffusion.modeling_text_unet import UNetFlatConditionModel

    folder, pipeline = tmp_path_factory.mktemp("weights") / "model", tiny_pipeline()
    text = UNetFlatConditionModel.from_config(pipeline.text_unet.config)
    pipeline._revert_dual_attention()
    VersatileDiffusionPipeline(**{**pipeline.components, "text_unet": text}).save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["text_unet"] = ["versatile_diffusion", "UNetFlatConditionModel"]  # as on the hub
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def made(model, **changes) -> VersatileDiffusion:
    return VersatileDiffusion(model=str(model), **{"text_space": "clip_text", "text_share": 0.5, "n_steps": 6,
                                                   "guidance": 5.0, "device": "cpu", **changes})


def generators(rows=range(N)) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 + i) for i in rows]


def pictures(reconstructor, rows=range(N)) -> torch.Tensor:
    rows = list(rows)
    return reconstructor.reconstruct({space: EMBEDDINGS[space][rows] for space in reconstructor.needs},
                                     generators=generators(rows))


def unit(tokens: torch.Tensor) -> torch.Tensor:
    return tokens / (tokens[:, :1].norm(dim=2, keepdim=True) + 1e-6)


def test_tokens_go_through_the_pipeline_of_the_library(weights):
    reconstructor = made(weights)
    got = pictures(reconstructor)
    assert got.shape == (N, 3, 32, 32)
    pipeline = reconstructor._pipeline
    states = {space: torch.cat([torch.zeros_like(x), unit(x)]) for space, x in EMBEDDINGS.items() if "clip" in space}
    pipeline._encode_text_prompt = lambda *args: states["clip_text"]
    pipeline._encode_image_prompt = lambda *args: states["clip"]
    expected = pipeline([""] * N, [""] * N, text_to_image_strength=0.5, num_inference_steps=6, guidance_scale=5.0,
                        generator=generators(), output_type="pt").images
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_pictures_from_latents_are_those_of_ddim_written_out(weights):
    reconstructor = made(weights, recipe="brain_diffuser", start="vae", strength=0.75, n_steps=5, text_share=0.4)
    got = pictures(reconstructor)
    unet, vae = reconstructor._pipeline.image_unet, reconstructor._pipeline.vae
    kept = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2).cumprod(0)
    for row in range(N):
        given = torch.cat([EMBEDDINGS["clip_text"][row : row + 1], EMBEDDINGS["clip"][row : row + 1]], dim=1)
        noise = torch.randn((1, 4, 16, 16), generator=generators([row])[0])
        steps = [401, 201, 1]  # of 801, 601, ...: int(5 * 0.75) = 3 are run
        x = kept[401].sqrt() * EMBEDDINGS["vae"][row : row + 1] + (1 - kept[401]).sqrt() * noise
        for t, after in zip(steps, [*steps[1:], 0], strict=True):
            towards, away = (unet(x, t, encoder_hidden_states=states).sample
                             for states in (given, reconstructor._unconditional))
            noise = away + 5.0 * (towards - away)
            clean = (x - (1 - kept[t]).sqrt() * noise) / kept[t].sqrt()
            x = kept[after].sqrt() * clean + (1 - kept[after]).sqrt() * noise
        expected = (vae.decode(x / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
        torch.testing.assert_close(got[row : row + 1], expected, atol=2e-4, rtol=0)


@torch.no_grad()
def test_guidance_leads_away_from_the_empty_caption_and_a_grey_picture(weights):
    from PIL import Image

    reconstructor = made(weights, recipe="brain_diffuser")
    pipeline = reconstructor._pipeline
    text = pipeline._encode_text_prompt([""], "cpu", 1, False)
    pictures = [Image.new("RGB", (32, 32), (level,) * 3) for level in (117, 127, 128, 138)]
    dark, grey, lighter, light = pipeline._encode_image_prompt(pictures, "cpu", 1, False).split(1)
    got = reconstructor._unconditional
    torch.testing.assert_close(got[:, :12], text)
    assert (got[:, 12:] - (grey + lighter) / 2).abs().max() < 0.05 * (light - dark).abs().max()
    assert made(weights)._unconditional.abs().max() == 0


@pytest.mark.parametrize("settings", [{}, {"text_space": None, "text_share": 0.0},
                                      {"recipe": "brain_diffuser", "start": PixelDecoding(size=16)}],
                         ids=["mindbridge", "mindeye", "brain_diffuser"])
def test_a_picture_depends_on_its_row_alone(weights, settings):
    reconstructor = made(weights, **settings)
    together = pictures(reconstructor)
    torch.testing.assert_close(pictures(reconstructor, [2, 0]), together[[2, 0]], atol=1e-4, rtol=0)
    assert (together[0] - together[1]).abs().mean() > 1e-2


def test_the_share_of_the_caption_is_that_of_its_tokens(weights):
    text, image = made(weights, text_share=1.0), made(weights, text_share=0.0)
    alone = made(weights, text_space=None, text_share=0.0)
    torch.testing.assert_close(pictures(image), pictures(alone), atol=1e-5, rtol=0)
    shuffled = {**EMBEDDINGS, "clip": EMBEDDINGS["clip"].flip(0)}
    torch.testing.assert_close(text.reconstruct(shuffled, generators=generators()), pictures(text), atol=1e-5, rtol=0)


def test_a_start_of_pictures_is_encoded(weights):
    reconstructor = made(weights, start=PixelDecoding(size=16))
    assert reconstructor.needs == ("clip", "clip_text", "pixels")
    low = interpolate(PixelDecoding(size=16).reconstruct({"pixels": EMBEDDINGS["pixels"]}, generators=generators()),
                      size=(32, 32), mode="bicubic", antialias=True).clamp(0, 1)
    vae = reconstructor._pipeline.vae
    with torch.no_grad():
        latents = vae.encode(2 * low - 1).latent_dist.mean * vae.config.scaling_factor
    expected = made(weights, start="vae").reconstruct({**EMBEDDINGS, "vae": latents}, generators=generators())
    torch.testing.assert_close(pictures(reconstructor), expected, atol=1e-4, rtol=0)


def specs(**shapes) -> dict[str, EmbeddingSpec]:
    shapes = {"clip": (257, 16), "clip_text": (12, 16), "vae": (4, 16, 16), **shapes}
    return {name: EmbeddingSpec(name=name, shape=shape, uid=f"of {name}") for name, shape in shapes.items()}


@pytest.mark.parametrize(("settings", "shapes", "message"), [
    ({}, {"clip": (50, 16)}, r"expected tokens of shape \(257, 16\), got \(50, 16\) in space 'clip'"),
    ({}, {"clip_text": (77, 768)}, r"expected tokens of shape \(12, 16\), got \(77, 768\) in space 'clip_text'"),
    ({"start": "vae"}, {"vae": (4, 8, 8)}, r"expected latents of shape \(4, 16, 16\), got \(4, 8, 8\)")])
def test_embeddings_that_do_not_fit_are_refused(weights, settings, shapes, message):
    reconstructor = made(weights, **settings)
    reconstructor.check(specs())
    with pytest.raises(ValueError, match=message):
        reconstructor.check(specs(**shapes))
    assert "_pipeline" not in vars(reconstructor), "nothing was loaded"


def test_settings_out_of_range_are_refused(weights, tmp_path):
    with pytest.raises(ValueError, match=r"recipe: expected one of mindeye, brain_diffuser, got 'other'"):
        made(weights, recipe="other")
    for settings in ({"text_share": 1.5}, {"text_space": None}):
        with pytest.raises(ValueError, match=r"text_share: expected a share in \[0, 1\], and 0 without text_space"):
            made(weights, **settings)
    with pytest.raises(ValueError, match=r"expected a share in \(0, 1\] .* got 0.1 of 6 steps"):
        made(weights, strength=0.1)
    with pytest.raises(ValueError, match="expected the folder of a Versatile Diffusion pipeline"):
        made(tmp_path).check(specs())


def test_weights_that_are_missing_are_not_made_up(weights, tmp_path):
    shutil.copytree(weights, tmp_path / "model")
    (tmp_path / "model/text_unet/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match="expected the text_unet of Versatile Diffusion"):
        pictures(made(tmp_path / "model"))


def test_yaml_makes_the_start_and_it_is_part_of_the_identity(weights):
    config = {"_target_": "brain2img.reconstructors.versatile_diffusion.VersatileDiffusion", "model": str(weights)}
    start = {"_target_": "brain2img.reconstructors.retrieval.NearestTrainingImage", "space": "clip"}
    plain, started = build(config, Reconstructor), build({**config, "start": start}, Reconstructor)
    assert [part.fits for part in (plain, started)] == [False, True]
    assert plain.uid() != started.uid()

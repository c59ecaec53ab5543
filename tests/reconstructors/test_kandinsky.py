from __future__ import annotations

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import save_file

from brain2img.pretrained import write_condition
from brain2img.reconstructors.kandinsky import SCHEDULERS, Kandinsky, tiny_pipeline
from brain2img.records import EmbeddingSpec

N, WIDTH = 3, 12
EMBEDDINGS = {"clip": torch.randn(N, WIDTH, generator=torch.Generator().manual_seed(9)),
              "vae": torch.randn(N, 4, 8, 8, generator=torch.Generator().manual_seed(10))}
SPECS = {"clip": EmbeddingSpec(name="clip", shape=(WIDTH,), uid="of clip"),
         "vae": EmbeddingSpec(name="vae", shape=(4, 8, 8), uid="of vae")}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder of weights in shards, as the small ones are shipped."""
    folder = tmp_path_factory.mktemp("weights") / "decoder"
    tiny_pipeline().save_pretrained(folder, safe_serialization=True, max_shard_size="200KB")
    assert len(list(folder.glob("movq/*.safetensors"))) > 1
    return folder


def generators(rows=range(N)) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 + i) for i in rows]


def made(model, **changes) -> Kandinsky:
    return Kandinsky(model=str(model), **{"n_steps": 3, "guidance": 2.0, "size": 16, "device": "cpu", **changes})


def pictures(reconstructor: Kandinsky, rows=range(N)) -> torch.Tensor:
    rows = list(rows)
    return reconstructor.reconstruct({space: EMBEDDINGS[space][rows] for space in reconstructor.needs},
                                     generators=generators(rows))


def test_pictures_are_those_of_the_pipeline_itself(weights):
    from diffusers import KandinskyV22Pipeline

    pipeline = KandinskyV22Pipeline.from_pretrained(weights, low_cpu_mem_usage=False)
    expected = pipeline(EMBEDDINGS["clip"], torch.zeros(N, WIDTH), height=16, width=16, num_inference_steps=3,
                        guidance_scale=2.0, generator=generators(), output_type="np").images
    got = pictures(made(weights))
    assert got.shape == (N, 3, 16, 16)
    torch.testing.assert_close(got.permute(0, 2, 3, 1), torch.from_numpy(expected), atol=1e-5, rtol=0)


def test_low_level_pictures_are_those_of_the_image_to_image_pipeline(weights):
    from diffusers import KandinskyV22Img2ImgPipeline

    pipeline = KandinskyV22Img2ImgPipeline.from_pretrained(weights, low_cpu_mem_usage=False)
    with torch.no_grad():
        start = pipeline.movq.decode(EMBEDDINGS["vae"], force_not_quantize=True).sample
    expected = pipeline(EMBEDDINGS["clip"], (start / 2 + 0.5).clamp(0, 1), torch.zeros(N, WIDTH), height=16, width=16,
                        num_inference_steps=6, strength=0.5, guidance_scale=2.0, generator=generators(),
                        output_type="pt").images
    reconstructor = made(weights, low_level_space="vae", n_steps=6, strength=0.5)
    torch.testing.assert_close(pictures(reconstructor), expected, atol=1e-5, rtol=0)
    assert reconstructor._image_to_image.unet is reconstructor._pipeline.unet, "loaded once"


@pytest.mark.parametrize("low_level_space", [None, "vae"])
@pytest.mark.parametrize("scheduler", [None, *SCHEDULERS])
def test_a_picture_depends_on_its_row_alone(weights, scheduler, low_level_space):
    reconstructor = made(weights, scheduler=scheduler, low_level_space=low_level_space)
    together = pictures(reconstructor)
    assert together.std() > 0.05
    near = {"atol": 1e-3, "rtol": 0}  # sums in another order; a quarter of a grey level
    torch.testing.assert_close(torch.cat([pictures(reconstructor, [i]) for i in range(N)]), together, **near)
    torch.testing.assert_close(pictures(reconstructor, [2, 0]), together[[2, 0]], **near)


def test_guidance_and_strength_and_negative_matter(weights, tmp_path):
    plain = pictures(made(weights))
    assert (pictures(made(weights, guidance=1.0)) - plain).abs().mean() > 1e-3
    gentle, strong = (pictures(made(weights, low_level_space="vae", n_steps=10, strength=s)) for s in (0.1, 1.0))
    start = made(weights)._picture(EMBEDDINGS["vae"])
    assert (gentle - start).abs().mean() < (strong - start).abs().mean()
    save_file({"negative": torch.full((1, WIDTH), 5.0)}, tmp_path / "negative.safetensors")
    assert (pictures(made(weights, negative=str(tmp_path / "negative.safetensors"))) - plain).abs().mean() > 1e-3


@pytest.mark.parametrize("scheduler", [None, *SCHEDULERS])
def test_latents_are_never_clipped_whatever_the_folder_says(weights, tmp_path, scheduler):
    folder = shutil.copytree(weights, tmp_path / "clipping")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "clip_sample": True, "thresholding": True,
                                "variance_type": "learned_range", "prediction_type": "v_prediction"}))
    config = made(folder, scheduler=scheduler)._pipeline.scheduler.config
    assert not config.get("clip_sample")
    assert not config.thresholding
    assert config.prediction_type == "v_prediction"
    assert torch.isfinite(pictures(made(folder, scheduler=scheduler))).all()


def test_identity_is_that_of_the_weights_and_not_of_their_place(weights, tmp_path):
    folder = shutil.copytree(weights, tmp_path / "elsewhere")
    write_condition(folder, condition=SPECS["clip"])
    assert made(folder).uid() == made(weights).uid()
    next(folder.glob("unet/*.safetensors")).write_bytes(b"")
    assert made(folder).uid() != made(weights).uid()


def test_embeddings_it_was_not_trained_on_are_refused(weights, tmp_path, caplog):
    both = made(weights, low_level_space="vae")
    with caplog.at_level(logging.INFO):
        both.check(SPECS)
    assert caplog.text.count("only the sizes") == 2, "published weights carry no note"
    folder = shutil.copytree(weights, tmp_path / "noted")
    write_condition(folder, condition=SPECS["clip"], latents=SPECS["vae"])
    both = made(folder, low_level_space="vae")
    both.check(SPECS)
    for space, role in (("clip", "condition"), ("vae", "latents")):
        other = EmbeddingSpec(name=space, shape=SPECS[space].shape, uid="of another")
        with pytest.raises(ValueError, match=f"expected as {role} the embeddings .* uid of {space}.* uid of another"):
            both.check({**SPECS, space: other})
    assert "_pipeline" not in vars(both), "nothing was loaded"


@pytest.mark.parametrize(("settings", "shapes", "message"), [
    ({}, {"clip": (7,)}, r"expected image embeddings of shape \(12,\), got \(7,\) in space 'clip'"),
    ({}, {"clip": (2, 6)}, r"expected image embeddings of shape \(12,\), got \(2, 6\)"),
    ({"size": 18}, {}, "expected a multiple of 4 .* got 18"),
    ({"low_level_space": "vae", "size": 32}, {}, r"expected latents of shape \(4, 16, 16\) for images of 32 pixels"),
    ({"low_level_space": "vae"}, {"vae": (3, 8, 8)}, r"expected latents of shape \(4, 8, 8\)"),
    ({"negative": "nowhere.safetensors"}, {}, "expected 'zeros' or a safetensors file, got 'nowhere.safetensors'"),
])
def test_sizes_that_do_not_fit_are_refused(weights, settings, shapes, message):
    specs = {name: EmbeddingSpec(name=name, shape=shapes.get(name, spec.shape)) for name, spec in SPECS.items()}
    with pytest.raises(ValueError, match=message):
        made(weights, **settings).check(specs)


def test_other_latent_channels_cannot_start_from_a_picture(tmp_path):
    tiny_pipeline(channels=3).save_pretrained(tmp_path)
    made(tmp_path).check(SPECS)
    with pytest.raises(ValueError, match="expected 4 latent channels to start from a picture, got 3"):
        made(tmp_path, low_level_space="vae").check(SPECS)


def test_settings_out_of_range_are_refused(weights, tmp_path):
    with pytest.raises(ValueError, match=r"scheduler: expected one of .* got 'EulerDiscreteScheduler'"):
        made(weights, scheduler="EulerDiscreteScheduler")
    for strength in (0.0, 0.2, 1.1):
        with pytest.raises(ValueError, match=rf"expected a share in \(0, 1\] .* got {strength} of 3 steps"):
            made(weights, strength=strength, low_level_space="vae")
    save_file({"negative": torch.zeros(7)}, tmp_path / "seven.safetensors")
    with pytest.raises(ValueError, match=r"expected one vector of 12 values, got \[\(7,\)\]"):
        made(weights, negative=str(tmp_path / "seven.safetensors")).check(SPECS)


def test_missing_and_pickled_weights_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"model: expected the folder of a KandinskyV22Pipeline.*nowhere"):
        made(tmp_path / "nowhere").check(SPECS)
    tiny_pipeline().save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(ValueError, match=r"expected a KandinskyV22Pipeline of diffusers \(safetensors\)"):
        pictures(made(tmp_path))

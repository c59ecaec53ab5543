"""Stable Diffusion XL with an IP-Adapter on a small pipeline and adapter that were saved to the disk."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from brain2img.captioners.prefix import PrefixLanguageModel
from brain2img.interfaces import Captioner
from brain2img.reconstructors.sdxl import SDXL, tiny_pipeline, write_tiny_adapter
from brain2img.records import EmbeddingSpec

N = 3


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(N, *shape, generator=torch.Generator().manual_seed(seed))


EMBEDDINGS = {"clip": random(12, seed=1), "vae": random(4, 16, 16, seed=2),
              "words": torch.tensor([[1.0], [0.0], [1.0]])}


class Said(Captioner):
    """Says what a number stands for."""

    needs = ("words",)

    def caption(self, embeddings):
        return [("", "a red cat")[int(row)] for row in embeddings["words"]]

    def uid(self):
        return "said"

    @classmethod
    def tiny(cls):
        return cls()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Return the folder of a saved pipeline, and the file of an adapter for it."""
    folder = tmp_path_factory.mktemp("weights")
    pipeline = tiny_pipeline()
    pipeline.save_pretrained(folder / "model")
    return folder / "model", write_tiny_adapter(pipeline.unet, folder / "ip-adapter.safetensors", width=12)


def made(weights, **changes) -> SDXL:
    model, adapter = weights
    return SDXL(**{"model": str(model), "adapter": str(adapter), "size": 32, "device": "cpu", **changes})


def generators(rows=range(N)) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 + i) for i in rows]


def pictures(reconstructor, rows=range(N)) -> torch.Tensor:
    rows = list(rows)
    return reconstructor.reconstruct({space: EMBEDDINGS[space][rows] for space in reconstructor.needs},
                                     generators=generators(rows))


def library(weights, row: int, *, low_level: bool, prompt: str = "", guidance: float = 0.0) -> torch.Tensor:
    """Return the picture of a row as the library makes it of one picture's embedding, one picture per call."""
    import diffusers

    model, adapter = weights
    cls = diffusers.StableDiffusionXLImg2ImgPipeline if low_level else diffusers.StableDiffusionXLPipeline
    pipeline = cls.from_pretrained(model, low_cpu_mem_usage=False, add_watermarker=False)
    pipeline.load_ip_adapter(adapter.parent, subfolder="", weight_name=adapter.name, image_encoder_folder=None)
    image = EMBEDDINGS["clip"][row][None, None]
    start = ({"image": EMBEDDINGS["vae"][row : row + 1], "strength": 0.5, "original_size": (32, 32),
              "target_size": (32, 32)} if low_level else {"height": 32, "width": 32})
    return pipeline(prompt, num_inference_steps=4, guidance_scale=guidance, generator=generators([row])[0],
                    ip_adapter_image_embeds=[torch.cat([0 * image, image]) if guidance > 1 else image],
                    output_type="pt", **start).images[0]


@pytest.mark.parametrize(("settings", "same"), [
    ({}, {"low_level": False}),
    ({"low_level_space": "vae", "strength": 0.5}, {"low_level": True}),
    ({"guidance": 3.0}, {"low_level": False, "guidance": 3.0})], ids=["turbo", "from latents", "guided"])
def test_pictures_are_those_of_the_library_one_at_a_time(weights, settings, same):
    got = pictures(made(weights, **settings))
    assert got.shape == (N, 3, 32, 32)
    assert got.std() > 0.05
    for row in range(N):
        torch.testing.assert_close(got[row], library(weights, row, **same), atol=1e-5, rtol=0)


def test_the_embedding_of_a_row_makes_its_own_picture_alone(weights):
    reconstructor = made(weights)
    together = pictures(reconstructor)
    torch.testing.assert_close(pictures(reconstructor, [2, 0]), together[[2, 0]], atol=1e-5, rtol=0)
    other = {"clip": EMBEDDINGS["clip"].clone()}
    other["clip"][1] += 1
    changed = (reconstructor.reconstruct(other, generators=generators()) - together).abs().amax((1, 2, 3))
    assert changed[1] > 1e-3
    assert max(changed[0], changed[2]) < 1e-5


def test_captions_are_the_prompts(weights):
    reconstructor = made(weights, condition=Said())
    assert reconstructor.needs == ("clip", "words")
    got = pictures(reconstructor)
    for row, prompt in enumerate(["a red cat", "", "a red cat"]):
        torch.testing.assert_close(got[row], library(weights, row, low_level=False, prompt=prompt), atol=1e-5, rtol=0)
    assert len({made(weights).uid(), reconstructor.uid()}) == 2
    assert not reconstructor.fits


def specs(**shapes) -> dict[str, EmbeddingSpec]:
    shapes = {"clip": (12,), "vae": (4, 16, 16), **shapes}
    return {name: EmbeddingSpec(name=name, shape=shape, uid=f"of {name}") for name, shape in shapes.items()}


@pytest.mark.parametrize(("settings", "shapes", "message"), [
    ({}, {"clip": (1024,)}, r"adapter: expected embeddings of shape \(12,\) for .*, got \(1024,\) in space 'clip'"),
    ({"low_level_space": "vae"}, {"vae": (4, 8, 8)}, r"expected latents of shape \(4, 16, 16\) for images of"),
    ({"size": 33}, {}, "expected a multiple of 2 for .* got 33"),
    ({"condition": PrefixLanguageModel(model="scenes_captioner", space="words")}, {"words": (7,)}, r"words|\(7,\)")])
def test_embeddings_and_sizes_that_do_not_fit_are_refused(weights, settings, shapes, message):
    reconstructor = made(weights, **settings)
    made(weights).check(specs())
    with pytest.raises(ValueError, match=message):
        reconstructor.check(specs(**shapes))
    assert "_pipeline" not in vars(reconstructor), "nothing was loaded"


def test_weights_that_do_not_fit_are_refused(weights, tmp_path):
    model, adapter = weights
    kept = load_file(adapter)
    save_file({key: value for key, value in kept.items() if "ip_adapter" not in key}, tmp_path / "half.safetensors")
    save_file({"image_proj.latents": torch.zeros(1, 4, 8)}, tmp_path / "plus.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(adapter.read_bytes()[:50])
    half = made((model, tmp_path / "half.safetensors"))
    with pytest.raises(ValueError, match=r"expected an IP-Adapter for .*, got .*half.safetensors, which does not fit"):
        pictures(half)
    for name, got in (("plus", r"got keys like \['image_proj.latents'\]"), ("broken", "got SafetensorError")):
        with pytest.raises(ValueError, match=rf"expected an IP-Adapter that reads one embedding .*{got}"):
            made((model, tmp_path / f"{name}.safetensors")).check(specs())
    with pytest.raises(ValueError, match=r"adapter: expected a safetensors file of an IP-Adapter, got ValueError"):
        made((model, tmp_path / "nowhere.bin")).check(specs())
    with pytest.raises(ValueError, match="expected the folder of a Stable Diffusion XL pipeline"):
        made((tmp_path / "nowhere", adapter)).check(specs())


def test_another_kind_of_model_is_refused(weights, tmp_path):
    import diffusers

    unet = diffusers.UNet2DConditionModel(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
                                          cross_attention_dim=16, down_block_types=("DownBlock2D",) * 2,
                                          up_block_types=("UpBlock2D",) * 2)
    unet.save_pretrained(tmp_path / "unet")
    diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).save_pretrained(tmp_path / "vae")
    with pytest.raises(ValueError, match="expected the UNet of a Stable Diffusion XL pipeline"):
        made((tmp_path, weights[1])).check(specs())


def test_settings_out_of_range_are_refused(weights):
    for strength in (0.0, 0.1, 1.1):
        with pytest.raises(ValueError, match=rf"expected a share in \(0, 1\] .* got {strength} of 4 steps"):
            made(weights, low_level_space="vae", strength=strength)

"""Stable Diffusion from image to image on small pipelines of diffusers that were saved to the disk."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import interpolate
from transformers import DPTForDepthEstimation

from brain2img.captioners.nearest_caption import NearestCaption
from brain2img.captioners.prefix import PrefixLanguageModel
from brain2img.interfaces import Captioner, Reconstructor
from brain2img.reconstructors.pixels import PixelDecoding
from brain2img.reconstructors.retrieval import NearestTrainingImage
from brain2img.reconstructors.stable_diffusion import StableDiffusion, tiny_pipeline
from brain2img.records import EmbeddingSpec
from brain2img.spaces.dpt import DPTStates
from brain2img.stages.build import build

N, STATES = 3, ("dpt_0", "dpt_1", "dpt_2", "dpt_3")


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(N, *shape, generator=torch.Generator().manual_seed(seed))


EMBEDDINGS = {"vae": random(4, 10, 10, seed=1), "clip_text": random(12, 16, seed=2), "depth": random(1, 8, 8, seed=3),
              "pixels": random(3, 8, 8, seed=4), "words": torch.tensor([[2.0], [0.0], [1.0]]),
              **{name: random(17, 16, seed=5 + i) for i, name in enumerate(STATES)}}


class Said(Captioner):
    """Says what a number stands for."""

    needs = ("words",)
    texts = ("a red cat", "", "blue")

    def caption(self, embeddings):
        return [self.texts[int(row)] for row in embeddings["words"]]

    def uid(self):
        return "said"

    @classmethod
    def tiny(cls):
        return cls()


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "depth"])
def weights(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "model"
    tiny_pipeline(depth=request.param).save_pretrained(folder)
    return folder, request.param


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "plain"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "deep"
    tiny_pipeline(depth=True).save_pretrained(folder)
    return folder


def generators(rows=range(N)) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 + i) for i in rows]


def made(model, **changes) -> StableDiffusion:
    return StableDiffusion(model=str(model), **{"n_steps": 5, "size": 32, "device": "cpu", **changes})


def pictures(reconstructor, rows=range(N)) -> torch.Tensor:
    rows = list(rows)
    return reconstructor.reconstruct({space: EMBEDDINGS[space][rows] for space in reconstructor.needs},
                                     generators=generators(rows))


@torch.no_grad()
def by_hand(folder, *, depth: torch.Tensor | None) -> torch.Tensor:
    """Return the pictures as published, written out: 4 of 5 steps of DDIM from the latents in `EMBEDDINGS`."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    vae, unet = (cls.from_pretrained(folder, subfolder=name, low_cpu_mem_usage=False).eval()
                 for cls, name in ((AutoencoderKL, "vae"), (UNet2DConditionModel, "unet")))
    empty = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")("", padding="max_length", max_length=12,
                                                                         return_tensors="pt")
    nothing = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")(empty["input_ids"]).last_hidden_state
    kept = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2).cumprod(0)
    scale, images = vae.config.scaling_factor, []
    for row in range(N):
        generator = generators()[row]
        low = (vae.decode(EMBEDDINGS["vae"][row : row + 1] / scale).sample / 2 + 0.5).clamp(0, 1)
        assert low.shape[-1] == 20
        start = interpolate(low, size=(32, 32), mode="bicubic", antialias=True).clamp(0, 1)
        x = vae.encode(2 * start - 1).latent_dist.sample(generator) * scale
        steps = [601, 401, 201, 1]  # of 801, 601, ..., the first fifth is left out
        x = kept[601].sqrt() * x + (1 - kept[601]).sqrt() * torch.randn(x.shape, generator=generator)
        for t, after in zip(steps, [*steps[1:], None], strict=True):
            seen = x if depth is None else torch.cat([x, depth[row : row + 1]], dim=1)
            noise, without = (unet(seen, t, encoder_hidden_states=states).sample
                              for states in (EMBEDDINGS["clip_text"][row : row + 1], nothing))
            noise = without + 5.0 * (noise - without)
            clean = (x - (1 - kept[t]).sqrt() * noise) / kept[t].sqrt()
            alpha = kept[0 if after is None else after]  # the authors end at the first noise level, too
            x = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        images.append((vae.decode(x / scale).sample / 2 + 0.5).clamp(0, 1))
    return torch.cat(images)


def test_pictures_are_those_of_the_published_steps_written_out(weights):
    folder, with_depth = weights
    depth = None
    if with_depth:
        depth = interpolate(EMBEDDINGS["depth"], size=(16, 16), mode="bicubic")
        low, high = (edge(depth, dim=(1, 2, 3), keepdim=True) for edge in (torch.amin, torch.amax))
        depth = 2 * (depth - low) / (high - low) - 1
    got = pictures(made(folder, depth="depth" if with_depth else None))
    assert got.shape == (N, 3, 32, 32)
    assert got.std() > 0.05
    torch.testing.assert_close(got, by_hand(folder, depth=depth), atol=2e-4, rtol=0)


def test_captions_are_the_prompts_of_the_pipeline(plain):
    from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline

    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(plain, low_cpu_mem_usage=False)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    start = interpolate(EMBEDDINGS["pixels"].clamp(0, 1), size=(32, 32), mode="bicubic").clamp(0, 1)
    expected = pipeline(["blue", "a red cat", ""], start, strength=0.8, num_inference_steps=5, guidance_scale=5.0,
                        generator=generators(), output_type="pt").images
    reconstructor = made(plain, start=PixelDecoding(size=32), condition=Said())
    assert reconstructor.needs == ("pixels", "words")
    got = pictures(reconstructor)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    assert (pictures(made(plain, start=PixelDecoding(size=32))) - got).abs().mean() > 1e-3, "the caption matters"


def test_depth_of_decoded_states_is_that_of_neck_and_head(deep, tmp_path):
    torch.manual_seed(0)
    DPTForDepthEstimation(DPTStates.tiny()._config).save_pretrained(tmp_path)
    network = DPTForDepthEstimation.from_pretrained(tmp_path)
    with torch.no_grad():
        maps = network.head(network.neck([EMBEDDINGS[name] for name in STATES], None, None))[:, None]
    expected = made(deep, depth="maps").reconstruct(
        {**EMBEDDINGS, "maps": interpolate(maps, size=(16, 16), mode="bicubic")}, generators=generators())
    reconstructor = made(deep, depth=DPTStates(model=str(tmp_path), size=16, device="cpu"), depth_spaces=STATES)
    assert reconstructor.needs == ("vae", "clip_text", *STATES)
    torch.testing.assert_close(pictures(reconstructor), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("settings", [{}, {"start": PixelDecoding(size=16), "condition": Said()}],
                         ids=["latents and states", "picture and caption"])
def test_a_picture_depends_on_its_row_alone(weights, settings):
    folder, with_depth = weights
    reconstructor = made(folder, depth="depth" if with_depth else None, **settings)
    together = pictures(reconstructor)
    near = {"atol": 1e-3, "rtol": 0}  # sums in another order; a quarter of a grey level
    torch.testing.assert_close(torch.cat([pictures(reconstructor, [i]) for i in range(N)]), together, **near)
    torch.testing.assert_close(pictures(reconstructor, [2, 0]), together[[2, 0]], **near)


def test_a_flat_depth_map_is_no_depth(deep):
    reconstructor, flat = made(deep, depth="depth"), {**EMBEDDINGS, "depth": torch.full((N, 1, 8, 8), 3.0)}
    got = reconstructor.reconstruct(flat, generators=generators())
    torch.testing.assert_close(got, by_hand(deep, depth=torch.zeros(N, 1, 16, 16)), atol=2e-4, rtol=0)


def test_yaml_makes_the_parts_and_they_are_part_of_the_identity(plain):
    parts = {"start": {"_target_": "brain2img.reconstructors.retrieval.NearestTrainingImage", "space": "clip"},
             "condition": {"_target_": "brain2img.captioners.prefix.PrefixLanguageModel", "model": "scenes_captioner"}}
    reconstructor = build({"_target_": "brain2img.reconstructors.stable_diffusion.StableDiffusion",
                           "model": str(plain), **parts}, Reconstructor)
    assert isinstance(reconstructor.start, NearestTrainingImage)
    assert isinstance(reconstructor.condition, PrefixLanguageModel)
    assert reconstructor.needs == ("clip",)
    alone = made(plain)
    assert len({alone.uid(), reconstructor.uid(), made(plain, condition=Said()).uid()}) == 3
    assert [part.fits for part in (alone, reconstructor)] == [False, True]


def test_parts_that_look_at_training_stimuli_are_shown_them(plain):
    class Seen(NearestCaption):
        def fit(self, embeddings, captions):
            self.seen = captions

    start = NearestTrainingImage(size=8, space="clip")
    reconstructor = made(plain, start=start, condition=Seen())
    known = NearestTrainingImage.tiny()._stimuli
    known.table["captions"] = [("a",), ("b", "c"), ("d",), ("e",)]
    reconstructor.fit({"clip": torch.randn(4, 3).numpy()}, known)
    assert reconstructor.condition.seen == [["a"], ["b", "c"], ["d"], ["e"]]
    assert start._neighbours is not None


def specs(**shapes) -> dict[str, EmbeddingSpec]:
    shapes = {"vae": (4, 10, 10), "clip_text": (12, 16), "depth": (1, 8, 8), "pixels": (3, 8, 8), **shapes}
    return {name: EmbeddingSpec(name=name, shape=shape, uid=f"of {name}") for name, shape in shapes.items()}


@pytest.mark.parametrize(("settings", "shapes", "message"), [
    ({}, {"vae": (3, 10, 10)}, r"expected latents of shape \(4, h, w\), got \(3, 10, 10\) in space 'vae'"),
    ({}, {"clip_text": (77, 768)}, r"expected states of its text encoder, \(12, 16\), got \(77, 768\)"),
    ({"size": 33}, {}, "expected a multiple of 2 for .* got 33"),
    ({"depth": "depth"}, {}, "reads 4 channels of latents and 1 of depth, got one of 4 channels"),
    ({"condition": PrefixLanguageModel.tiny()}, {"clip": (7,)}, r"expected embeddings of shape \(12,\), got \(7,\)"),
])
def test_embeddings_and_sizes_that_do_not_fit_are_refused(plain, settings, shapes, message):
    reconstructor = made(plain, **settings)
    with pytest.raises(ValueError, match=message):
        reconstructor.check(specs(**shapes))
    made(plain).check(specs())
    assert "_pipeline" not in vars(reconstructor), "nothing was loaded"


def test_depth_that_does_not_fit_is_refused(deep):
    with pytest.raises(ValueError, match="reads 4 channels of latents and 0 of depth, got one of 5 channels"):
        made(deep).check(specs())
    with pytest.raises(ValueError, match=r"expected a space of depth maps \(1, h, w\), got \(3, 8, 8\)"):
        made(deep, depth="pixels").check(specs())
    dpt = DPTStates.tiny()
    known = specs() | {name: EmbeddingSpec(name=name, shape=(17, 16), uid=dpt._uid(i)) for i, name in enumerate(STATES)}
    made(deep, depth=dpt, depth_spaces=STATES).check(known)
    for spaces, got in (((STATES[0],) * 4, r"\[0, 0, 0, 0\]"), (STATES[:3], r"\[0, 1, 2\]"),
                        ((*STATES[:3], "depth"), r"\[0, 1, 2, None\]")):
        with pytest.raises(ValueError, match=f"expected stages 0, 1, 2, 3 of tiny, got stages {got}"):
            made(deep, depth=dpt, depth_spaces=spaces).check(known)


def test_settings_out_of_range_are_refused(plain, tmp_path):
    for strength in (0.0, 0.1, 1.1):
        with pytest.raises(ValueError, match=rf"expected a share in \(0, 1\] .* got {strength} of 5 steps"):
            made(plain, strength=strength)
    for settings in ({"depth_spaces": STATES}, {"depth": "depth", "depth_spaces": STATES}, {"depth": DPTStates.tiny()}):
        with pytest.raises(ValueError, match="expected spaces of hidden states together with a part"):
            made(plain, **settings)
    with pytest.raises(ValueError, match=r"model: expected the folder of a Stable Diffusion pipeline.*nowhere"):
        made(tmp_path / "nowhere").check(specs())


def test_only_safetensors_are_read(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(ValueError, match=r"expected the folder of a Stable Diffusion pipeline \(safetensors\)"):
        pictures(made(tmp_path))

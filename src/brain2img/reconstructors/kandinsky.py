"""Kandinsky 2.2: latent diffusion conditioned on an image embedding."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Generator, Tensor

from brain2img.artifacts import is_of_the_system
from brain2img.devices import device_of
from brain2img.interfaces import Reconstructor
from brain2img.pretrained import check_condition, identity, locate
from brain2img.pretrained.loading import load_diffusers
from brain2img.records import EmbeddingSpec

log = logging.getLogger(__name__)

# the pipelines never scale the input of the UNet and hand every sampler a generator: others would fail, or sample noise
SCHEDULERS = ("DDPMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler")


class Kandinsky(Reconstructor):
    """A ``KandinskyV22Pipeline`` of diffusers: an image from a decoded image embedding (https://arxiv.org/abs/2310.03502).

    The decoded embedding stands where Kandinsky's own prior would put one. With `low_level_space`, decoded latents are
    turned into a blurred picture first, and the same networks start from it (``KandinskyV22Img2ImgPipeline``), as
    published systems do with a low-level branch (e.g. MindEye, https://arxiv.org/abs/2305.18274). Half precision on a
    GPU, single precision elsewhere. Samplers never clip latents to [-1, 1], as diffusers lets them do: latents are no
    pixels.

    Parameters
    ----------
    model
        Name of one of our small backbones, folder, or hub id; safetensors only.
    space
        Space of shape ``(D,)`` the UNet is conditioned on, not normalised.
    low_level_space
        Space of latents ``(4, h, w)`` of this model's autoencoder to start from; None starts from noise.
    strength
        How much of the start is replaced, in (0, 1]: the share of the steps that is run. Only with `low_level_space`.
    n_steps
        Steps of the sampler.
    guidance
        Classifier-free guidance scale; up to 1 is without.
    size
        Height and width of the images (pixels).
    scheduler
        Sampler in place of the model's own: "DDPMScheduler", "DDIMScheduler" or "DPMSolverMultistepScheduler" (good
        with 10 to 20 steps).
    negative
        What guidance leads away from: "zeros", as in the training of the small backbones, or a safetensors file with
        one vector ``(D,)``. The published weights want the embedding of a black image, which
        ``KandinskyV22PriorPipeline.get_zero_embed`` computes: it lies in the weights of their prior, not in these.
    device
        Where the model runs; "auto" takes a GPU if there is one.

    Raises
    ------
    ValueError
        If a setting is out of range.
    """

    tiny_shapes = {"clip": (12,)}

    def __init__(self, *, model: str, space: str = "clip", low_level_space: str | None = None, strength: float = 0.7,
                 n_steps: int = 20, guidance: float = 3.0, size: int = 64, scheduler: str | None = None,
                 negative: str = "zeros", device: str = "auto") -> None:
        self.model, self.space, self.low_level_space = model, space, low_level_space
        self.strength, self.n_steps, self.guidance, self.size = strength, n_steps, guidance, size
        self.scheduler, self.negative = scheduler, negative
        self.needs = (space, low_level_space) if low_level_space else (space,)
        self.device = device_of(device)
        if scheduler is not None and scheduler not in SCHEDULERS:
            raise ValueError(f"reconstructor.scheduler: expected one of {SCHEDULERS} or null, got {scheduler!r}. "
                             "The pipeline works with these.")
        if not 0 < strength <= 1 or (low_level_space and int(n_steps * strength) < 1) or n_steps < 1:
            raise ValueError(f"reconstructor.strength: expected a share in (0, 1] that leaves at least one step, got "
                             f"{strength} of {n_steps} steps. Raise strength or n_steps.")

    @cached_property
    def _configs(self) -> dict[str, Mapping[str, Any]]:
        """The configurations of UNet and autoencoder, read without their weights."""
        from diffusers import UNet2DConditionModel, VQModel

        try:
            return {"unet": UNet2DConditionModel.load_config(locate(self.model), subfolder="unet"),
                    "movq": VQModel.load_config(locate(self.model), subfolder="movq")}
        except (OSError, ValueError) as error:
            if is_of_the_system(error):
                raise
            raise self._missing(error) from error

    @cached_property
    def _pipeline(self) -> Any:
        import diffusers

        pipeline = load_diffusers(diffusers.KandinskyV22Pipeline, self.model, what="reconstructor.model",
                                  kind="the folder of a KandinskyV22Pipeline",
                                  dtype=torch.float16 if self.device.startswith("cuda") else torch.float32)
        return self._ready(pipeline.to(self.device))

    def _ready(self, pipeline: Any) -> Any:
        """Set the sampler, and silence."""
        import diffusers

        settings = {**pipeline.scheduler.config, "clip_sample": False, "thresholding": False}
        cls = getattr(diffusers, self.scheduler) if self.scheduler else type(pipeline.scheduler)
        if cls is not diffusers.DDPMScheduler:
            settings["variance_type"] = None  # the others do not use the variance that the UNet may have learnt
        pipeline.scheduler = cls.from_config(settings)
        pipeline.set_progress_bar_config(disable=True)
        for part in (pipeline.unet, pipeline.movq):
            part.eval().requires_grad_(False)
        return pipeline

    @cached_property
    def _image_to_image(self) -> Any:
        from diffusers import KandinskyV22Img2ImgPipeline

        pipeline = KandinskyV22Img2ImgPipeline(**self._pipeline.components)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _missing(self, error: Exception) -> ValueError:
        return ValueError(f"reconstructor.model: expected the folder of a KandinskyV22Pipeline (safetensors), got "
                          f"{type(error).__name__} for {self.model!r}: {str(error).splitlines()[0]} Give such a folder "
                          "or hub id, or download it on a machine with network access first.")

    def uid(self) -> str:
        """Return the identity of the weights."""
        return identity(self.model)

    def check(self, specs: Mapping[str, EmbeddingSpec]) -> None:
        """Refuse embeddings of another space than the weights were trained on, and sizes that do not fit them.

        Raises
        ------
        ValueError
            If the uid differs from the one noted beside the weights, or shape, channels or image size do not fit.
        """
        check_condition(self.model, condition=specs[self.space],
                        **({"latents": specs[self.low_level_space]} if self.low_level_space else {}))
        unet, movq = self._configs["unet"], self._configs["movq"]
        width, got = unet["encoder_hid_dim"], specs[self.space].shape
        if unet.get("addition_embed_type") != "image" or unet.get("encoder_hid_dim_type") != "image_proj":
            raise ValueError(f"{self.model}: expected a UNet conditioned on an image embedding alone (Kandinsky 2.2), "
                             "got another kind. Choose a KandinskyV22Pipeline.")
        if got != (width,):
            raise ValueError(f"{self.model}: expected image embeddings of shape {(width,)}, got {got} in space "
                             f"{self.space!r}. Choose the space whose embeddings condition this model.")
        factor = 2 ** (len(movq["block_out_channels"]) - 1)
        if self.size % factor**2:
            raise ValueError(f"reconstructor.size: expected a multiple of {factor**2} for {self.model}, got "
                             f"{self.size}: the pipeline would enlarge it. Choose another size.")
        if self.low_level_space:
            self._check_latents(specs[self.low_level_space].shape, channels=unet["in_channels"], factor=factor)
        if self.negative != "zeros":
            self._negative(width)

    def _check_latents(self, got: tuple[int, ...], *, channels: int, factor: int) -> None:
        if channels != 4:
            raise ValueError(f"{self.model}: expected 4 latent channels to start from a picture, got {channels}: "
                             "KandinskyV22Img2ImgPipeline knows no other. Leave low_level_space out (null).")
        expected = (channels, self.size // factor, self.size // factor)
        if got != expected:
            raise ValueError(f"{self.model}: expected latents of shape {expected} for images of {self.size} pixels, "
                             f"got {got} in space {self.low_level_space!r}. Choose the latents of this model's "
                             "autoencoder at the same size.")

    def _negative(self, width: int) -> Tensor:
        """Return the embedding ``(D,)`` that guidance leads away from."""
        if self.negative == "zeros":
            return torch.zeros(width)
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            vectors = list(load_file(Path(self.negative).expanduser()).values())
        except (OSError, SafetensorError) as error:
            if is_of_the_system(error):
                raise
            raise ValueError(f"reconstructor.negative: expected 'zeros' or a safetensors file, got {self.negative!r} "
                             f"({error}). Save what KandinskyV22PriorPipeline.get_zero_embed returns.") from error
        if len(vectors) != 1 or vectors[0].numel() != width:
            raise ValueError(f"reconstructor.negative: expected one vector of {width} values, got "
                             f"{[tuple(x.shape) for x in vectors]} in {self.negative}. Save the right one.")
        return vectors[0].flatten().float()

    @torch.no_grad()
    def reconstruct(self, embeddings: Mapping[str, Tensor], *, generators: Sequence[Generator]) -> Tensor:
        """Return ``(B, 3, size, size)`` in [0, 1] on the CPU; see `interfaces.Reconstructor.reconstruct`."""
        unet = self._pipeline.unet
        condition = embeddings[self.space].to(device=unet.device, dtype=unet.dtype)
        negative = self._negative(condition.shape[1]).to(condition).expand_as(condition)
        settings: dict[str, Any] = {
            "image_embeds": condition, "negative_image_embeds": negative, "height": self.size, "width": self.size,
            "num_inference_steps": self.n_steps, "guidance_scale": self.guidance, "generator": list(generators),
            "output_type": "latent"}
        if self.low_level_space:
            # not the latents themselves: the pipeline encodes whatever it is given
            start = self._picture(embeddings[self.low_level_space].to(condition))
            latents = self._image_to_image(image=start, strength=self.strength, **settings).images
        else:
            latents = self._pipeline(**settings).images
        return self._picture(latents).float().cpu()

    def _picture(self, latents: Tensor) -> Tensor:
        """Return the images ``(B, 3, h, w)`` in [0, 1] of latents ``(B, 4, h', w')``."""
        return (self._pipeline.movq.decode(latents, force_not_quantize=True).sample / 2 + 0.5).clamp(0, 1)

    @classmethod
    def tiny(cls) -> Self:
        """Return untrained networks that make images of 16 x 16 pixels from embeddings of 12 values in two steps."""
        tiny = cls(model="tiny", n_steps=2, guidance=2.0, size=16, device="cpu")
        pipeline = tiny_pipeline()
        tiny._configs = {"unet": pipeline.unet.config, "movq": pipeline.movq.config}
        tiny._pipeline = tiny._ready(pipeline)
        return tiny


def tiny_pipeline(*, width: int = 12, channels: int = 4) -> Any:
    """Return an untrained ``KandinskyV22Pipeline`` for embeddings ``(width,)``, of the published kinds of blocks."""
    from diffusers import DDPMScheduler, KandinskyV22Pipeline, UNet2DConditionModel, VQModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8, in_channels=channels, out_channels=2 * channels, block_out_channels=(8, 16),
            layers_per_block=1, norm_num_groups=4, attention_head_dim=4, cross_attention_dim=8,
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            resnet_time_scale_shift="scale_shift", encoder_hid_dim=width, encoder_hid_dim_type="image_proj",
            addition_embed_type="image")
        movq = VQModel(
            block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
            up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"), norm_num_groups=4, norm_type="spatial",
            latent_channels=channels, num_vq_embeddings=8, vq_embed_dim=channels)
    return KandinskyV22Pipeline(unet=unet, movq=movq, scheduler=DDPMScheduler(clip_sample=False))

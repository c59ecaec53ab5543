"""Stable Diffusion from image to image: a decoded picture, decoded text and, if wanted, decoded depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Generator, Tensor

from brain2img.artifacts import digest, is_of_the_system
from brain2img.devices import device_of
from brain2img.interfaces import Captioner, Reconstructor
from brain2img.pretrained import check_condition, identity, locate
from brain2img.pretrained.loading import load_config, load_diffusers, tiny_clip_text, tiny_clip_tokenizer
from brain2img.records import EmbeddingSpec, Stimuli


class DepthOfStates(Protocol):
    """What makes a depth map of decoded hidden states of a depth network, such as `spaces.dpt.DPTStates`."""

    def uid(self) -> str:
        """Return the identity of its weights."""

    def check_states(self, states: Sequence[EmbeddingSpec]) -> None:
        """Refuse states that are not its own, in its order."""

    def depth(self, states: Sequence[Tensor]) -> Tensor:
        """Return depth maps ``(B, 1, h, w)`` of states ``(B, L, D)``."""


class StableDiffusion(Reconstructor):
    """``StableDiffusionImg2ImgPipeline`` or, with depth, ``StableDiffusionDepth2ImgPipeline`` of diffusers.

    The generation of Takagi & Nishimoto: decoded latents z of a picture of 320 pixels are decoded, enlarged (bicubic)
    and encoded again, then DDIM (eta 0) runs the last `strength` of its steps under decoded text states c
    (https://doi.org/10.1101/2022.11.18.517004), or under a decoded caption, from the picture of another reconstructor,
    and with a decoded depth map (https://arxiv.org/abs/2306.11536). Guidance leads away from the empty caption. There
    is no safety checker. Half precision on a GPU, single precision elsewhere. One picture per row, where the authors
    make five.

    Parameters
    ----------
    model
        Folder or hub id of a Stable Diffusion pipeline of diffusers; safetensors only. With `depth`, one whose UNet
        reads a depth map beside the latents ("stabilityai/stable-diffusion-2-depth").
    start
        Where it starts: a space of latents ``(4, h, w)`` of this model's autoencoder, of pictures of any size, or a
        reconstructor, whose pictures are taken.
    condition
        Space of states ``(L, D)`` of this model's text encoder, or a captioner, whose captions are encoded.
    depth
        None; or a space of depth maps ``(1, h, w)``, near is high; or what makes them of decoded states
        (`spaces.dpt.DPTStates`). The pipeline resizes them (bicubic) and brings each to [-1, 1]; a flat one is 0.
    depth_spaces
        Spaces of these states, in their order; only with a `depth` that makes maps of states.
    strength
        How much of the start is replaced, in (0, 1]: the share of the steps that is run.
    n_steps
        Steps of DDIM.
    guidance
        Classifier-free guidance scale; up to 1 is without.
    size
        Height and width of the images (pixels).
    device
        Where the model runs; "auto" takes a GPU if there is one.

    Raises
    ------
    ValueError
        If a setting is out of range.
    """

    tiny_shapes = {"vae": (4, 16, 16), "clip_text": (12, 16)}

    def __init__(self, *, model: str, start: str | Reconstructor = "vae", condition: str | Captioner = "clip_text",
                 depth: str | DepthOfStates | None = None, depth_spaces: Sequence[str] = (), strength: float = 0.8,
                 n_steps: int = 50, guidance: float = 5.0, size: int = 512, device: str = "auto") -> None:
        self.model, self.start, self.condition, self.depth = model, start, condition, depth
        self.strength, self.n_steps, self.guidance, self.size = strength, n_steps, guidance, size
        self.depth_spaces = (depth,) if isinstance(depth, str) else tuple(depth_spaces)
        self.device = device_of(device)
        self.needs = tuple(dict.fromkeys([*(space for part in (start, condition) for space in
                                            ((part,) if isinstance(part, str) else part.needs)), *self.depth_spaces]))
        if not 0 < strength <= 1 or n_steps < 1 or int(n_steps * strength) < 1:
            raise ValueError(f"reconstructor.strength: expected a share in (0, 1] that leaves at least one step, got "
                             f"{strength} of {n_steps} steps. Raise strength or n_steps.")
        if bool(depth_spaces) != (depth is not None and not isinstance(depth, str)):
            raise ValueError(f"reconstructor.depth_spaces: expected spaces of hidden states together with a part that "
                             f"makes depth maps of them (depth={{_target_: ...}}), got {list(depth_spaces)} and depth "
                             f"of type {type(depth).__name__}. Give both or neither.")

    @cached_property
    def _configs(self) -> dict[str, Mapping[str, Any]]:
        """The configurations of UNet, autoencoder and text encoder, read without their weights."""
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextConfig

        try:
            configs = {"unet": UNet2DConditionModel.load_config(locate(self.model), subfolder="unet"),
                     "vae": AutoencoderKL.load_config(locate(self.model), subfolder="vae")}
        except (OSError, ValueError) as error:
            if is_of_the_system(error):
                raise
            raise self._missing(error) from error
        return {**configs, "text": load_config(CLIPTextConfig, self.model, what="reconstructor.model",
                                             subfolder="text_encoder").to_dict()}

    @cached_property
    def _pipeline(self) -> Any:
        import diffusers

        if self.depth is None:
            cls = diffusers.StableDiffusionImg2ImgPipeline
            unused = {"safety_checker": None, "requires_safety_checker": False, "feature_extractor": None,
                      "image_encoder": None}
        else:
            cls, unused = diffusers.StableDiffusionDepth2ImgPipeline, {"depth_estimator": None,
                                                                       "feature_extractor": None}
        pipeline = load_diffusers(
            cls, self.model, what="reconstructor.model", kind="the folder of a Stable Diffusion pipeline", **unused,
            dtype=torch.float16 if self.device.startswith("cuda") else torch.float32)
        return self._ready(pipeline.to(self.device))

    def _ready(self, pipeline: Any) -> Any:
        """Set the sampler, silence, and what becomes of a flat depth map."""
        from diffusers import DDIMScheduler

        pipeline.scheduler = DDIMScheduler.from_config({**pipeline.scheduler.config, "clip_sample": False,
                                                        "thresholding": False})
        pipeline.set_progress_bar_config(disable=True)
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            part.eval().requires_grad_(False)
        if self.depth is not None:
            scaled = pipeline.prepare_depth_map  # divides by the range of a map, which may be 0
            pipeline.prepare_depth_map = lambda *args, **named: scaled(*args, **named).nan_to_num(nan=0.0)
        return pipeline

    def _missing(self, error: Exception) -> ValueError:
        return ValueError(f"reconstructor.model: expected the folder of a Stable Diffusion pipeline (safetensors), got "
                          f"{type(error).__name__} for {self.model!r}: {str(error).splitlines()[0]} Give such a folder "
                          "or hub id, or download it on a machine with network access first.")

    def uid(self) -> str:
        """Return the identity of all weights."""
        parts = [part.uid() for part in (self.start, self.condition, self.depth)
                 if part is not None and not isinstance(part, str)]
        return digest([identity(self.model), *parts]) if parts else identity(self.model)

    def check(self, specs: Mapping[str, EmbeddingSpec]) -> None:
        """Refuse embeddings that are not what the model reads, by their shapes.

        Raises
        ------
        ValueError
            If the UNet reads another number of channels, a shape or the image size does not fit, or a part refuses.
        """
        unet, vae, text = (self._configs[part] for part in ("unet", "vae", "text"))
        channels, factor = vae["latent_channels"], 2 ** (len(vae["block_out_channels"]) - 1)
        if unet["in_channels"] != channels + (self.depth is not None):
            raise ValueError(f"{self.model}: expected a UNet that reads {channels} channels of latents and "
                             f"{int(self.depth is not None)} of depth, got one of {unet['in_channels']} channels. "
                             "Choose a model that is conditioned on depth if, and only if, depth is set.")
        if self.size % factor:
            raise ValueError(f"reconstructor.size: expected a multiple of {factor} for {self.model}, got {self.size}. "
                             "Choose another size.")
        self._check_parts(specs, latent_channels=channels, states=(text["max_position_embeddings"],
                                                                   unet["cross_attention_dim"]))
        if isinstance(self.depth, str):
            if len(specs[self.depth].shape) != 3 or specs[self.depth].shape[0] != 1:
                raise ValueError(f"reconstructor.depth: expected a space of depth maps (1, h, w), got "
                                 f"{specs[self.depth].shape} in space {self.depth!r}. Choose another space.")
        elif self.depth is not None:
            self.depth.check_states([specs[space] for space in self.depth_spaces])

    def _check_parts(self, specs: Mapping[str, EmbeddingSpec], *, latent_channels: int, states: tuple[int, int]
                     ) -> None:
        if isinstance(self.start, str):
            got = specs[self.start].shape
            if len(got) != 3 or got[0] != latent_channels:
                raise ValueError(f"{self.model}: expected latents of shape ({latent_channels}, h, w), got {got} in "
                                 f"space {self.start!r}. Choose the latents of this model's autoencoder.")
            check_condition(self.model, latents=specs[self.start])
        else:
            self.start.check(specs)
        if isinstance(self.condition, str):
            if specs[self.condition].shape != states:
                raise ValueError(f"{self.model}: expected states of its text encoder, {states}, got "
                                 f"{specs[self.condition].shape} in space {self.condition!r}. Choose the space of "
                                 "this model's text states.")
            check_condition(self.model, condition=specs[self.condition])
        else:
            self.condition.check(specs)

    @property
    def fits(self) -> bool:
        """Whether the start or the captioner looks at training stimuli."""
        return any(part.fits for part in (self.start, self.condition) if not isinstance(part, str))

    def fit(self, embeddings: Mapping[str, np.ndarray], stimuli: Stimuli) -> None:
        """Show the training stimuli to the start and the captioner; see `interfaces.Reconstructor.fit`."""
        if not isinstance(self.start, str) and self.start.fits:
            self.start.fit(embeddings, stimuli)
        if not isinstance(self.condition, str) and self.condition.fits:
            self.condition.fit(embeddings, [list(texts) for texts in stimuli.table["captions"]])

    @torch.no_grad()
    def reconstruct(self, embeddings: Mapping[str, Tensor], *, generators: Sequence[Generator]) -> Tensor:
        """Return ``(B, 3, size, size)`` in [0, 1] on the CPU; see `interfaces.Reconstructor.reconstruct`."""
        unet = self._pipeline.unet
        settings: dict[str, Any] = {}
        if isinstance(self.condition, str):
            settings["prompt_embeds"] = embeddings[self.condition].to(device=unet.device, dtype=unet.dtype)
        else:
            settings["prompt"] = self.condition.caption(embeddings)
        if self.depth is not None:
            maps = (embeddings[self.depth] if isinstance(self.depth, str)
                    else self.depth.depth([embeddings[space] for space in self.depth_spaces]))
            settings["depth_map"] = maps[:, 0]
        latents = self._pipeline(
            image=self._start(embeddings, generators), strength=self.strength, num_inference_steps=self.n_steps,
            guidance_scale=self.guidance, generator=list(generators), output_type="latent", **settings).images
        return self._picture(latents).float().cpu()

    def _start(self, embeddings: Mapping[str, Tensor], generators: Sequence[Generator]) -> Tensor:
        """Return the pictures ``(B, 3, size, size)`` in [0, 1] to start from."""
        unet = self._pipeline.unet
        if isinstance(self.start, str):
            pictures = self._picture(embeddings[self.start].to(device=unet.device, dtype=unet.dtype))
        else:
            pictures = self.start.reconstruct(embeddings, generators=generators).to(unet.device, unet.dtype)
        if pictures.shape[-1] == self.size:
            return pictures
        return torch.nn.functional.interpolate(pictures, size=(self.size, self.size), mode="bicubic",
                                               align_corners=False, antialias=True).clamp(0, 1)

    def _picture(self, latents: Tensor) -> Tensor:
        """Return the images ``(B, 3, h, w)`` in [0, 1] of scaled latents ``(B, 4, h', w')``."""
        vae = self._pipeline.vae
        return (vae.decode(latents / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)

    @classmethod
    def tiny(cls) -> Self:
        """Return untrained networks: 32 x 32 pixels in two steps from latents ``(4, h, w)`` and 12 states of 16."""
        tiny = cls(model="tiny", n_steps=2, strength=0.5, guidance=2.0, size=32, device="cpu")
        pipeline = tiny_pipeline()
        tiny._configs = {"unet": pipeline.unet.config, "vae": pipeline.vae.config,
                         "text": pipeline.text_encoder.config.to_dict()}
        tiny._pipeline = tiny._ready(pipeline)
        return tiny


def tiny_pipeline(*, depth: bool = False) -> Any:
    """Return an untrained pipeline of the published kinds of blocks, whose text encoder reads 12 letters."""
    import diffusers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = {
            "tokenizer": tiny_clip_tokenizer(), "text_encoder": tiny_clip_text(width=16),
            "vae": diffusers.AutoencoderKL(
                block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4,
                up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4),
            "unet": diffusers.UNet2DConditionModel(
                sample_size=16, in_channels=4 + depth, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
                norm_num_groups=4, attention_head_dim=2, cross_attention_dim=16,
                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")),
            # the sampler and the noise schedule that the published weights come with
            "scheduler": diffusers.PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                                                 skip_prk_steps=True, steps_offset=1)}
    if depth:
        return diffusers.StableDiffusionDepth2ImgPipeline(**parts, depth_estimator=None, feature_extractor=None)
    return diffusers.StableDiffusionImg2ImgPipeline(**parts, safety_checker=None, feature_extractor=None,
                                                    requires_safety_checker=False)

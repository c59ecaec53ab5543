"""Versatile Diffusion, guided by decoded tokens of a picture and of its caption."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from torch import Generator, Tensor

from brain2img.artifacts import digest, is_of_the_system
from brain2img.devices import device_of
from brain2img.interfaces import Reconstructor
from brain2img.pretrained import check_condition, identity, locate
from brain2img.pretrained.loading import (
    load_config,
    load_diffusers,
    load_model,
    load_tokenizer,
    resized,
    tiny_clip_text,
    tiny_clip_tokenizer,
)
from brain2img.records import EmbeddingSpec, Stimuli

RECIPES = {"mindeye": "UniPCMultistepScheduler", "brain_diffuser": "DDIMScheduler"}
"""Recipe -> sampler."""
IMAGE_TOKENS = 257  # the pipeline knows no other number


class VersatileDiffusion(Reconstructor):
    """``VersatileDiffusionDualGuidedPipeline`` of diffusers: the generator of MindEye, MindBridge and Brain-Diffuser.

    In each block of cross-attention what the tokens of the picture and those of the caption add is mixed
    (https://arxiv.org/abs/2211.08332). Two recipes prepare the tokens, as their authors do:

    - "mindeye" (https://arxiv.org/abs/2305.18274, https://arxiv.org/abs/2404.07850): every token is divided by the norm
      of token 0, guidance leads away from zeros, UniPC samples.
    - "brain_diffuser" (https://arxiv.org/abs/2303.05334): tokens as they are decoded, guidance leads away from the
      empty caption and a mid-grey picture, DDIM (eta 0) samples.

    The start is brought into the autoencoder as a picture in [-1, 1]; the released code of MindEye and MindBridge
    normalises it by the colours of CLIP instead, which the autoencoder does not know. Half precision on a GPU, single
    precision elsewhere. This is the only file that knows the pipeline, which lies among the deprecated ones of
    diffusers; should it vanish, Kandinsky 2.2 (`reconstructors.kandinsky`) and SDXL with an IP-Adapter
    (`reconstructors.sdxl`) are kept, both of which read one embedding of a picture.

    Parameters
    ----------
    model
        Folder or hub id of a Versatile Diffusion pipeline of diffusers ("shi-labs/versatile-diffusion"); safetensors
        only.
    space
        Space of the tokens of a picture ``(257, D)``: the model's own ViT-L/14, projected.
    text_space
        Space of the tokens of its caption ``(L, D)``; None leaves the caption out (MindEye).
    text_share
        Share of the caption in the mixture, in [0, 1]: 0.5 (MindBridge), 0.4 (Brain-Diffuser). Only with `text_space`.
    start
        Space of latents ``(4, h, w)`` of this model's autoencoder, times its scaling factor, or a reconstructor whose
        pictures are taken; None starts from noise.
    strength
        How much of the start is replaced, in (0, 1]: the share of the steps that is run.
    n_steps
        Steps of the sampler.
    guidance
        Classifier-free guidance scale; up to 1 is without.
    recipe
        "mindeye" or "brain_diffuser".
    device
        Where the model runs; "auto" takes a GPU if there is one.

    Raises
    ------
    ValueError
        If a setting is out of range.
    """

    tiny_shapes = {"clip": (IMAGE_TOKENS, 16), "clip_text": (12, 16)}

    def __init__(self, *, model: str, space: str = "clip", text_space: str | None = None, text_share: float = 0.0,
                 start: str | Reconstructor | None = None, strength: float = 0.85, n_steps: int = 20,
                 guidance: float = 3.5, recipe: str = "mindeye", device: str = "auto") -> None:
        self.model, self.space, self.text_space, self.text_share = model, space, text_space, text_share
        self.start, self.strength, self.n_steps, self.guidance = start, strength, n_steps, guidance
        self.recipe, self.device = recipe, device_of(device)
        given = () if start is None else (start,) if isinstance(start, str) else start.needs
        self.needs = tuple(dict.fromkeys([space, *([text_space] if text_space else []), *given]))
        if recipe not in RECIPES:
            raise ValueError(f"reconstructor.recipe: expected one of {', '.join(RECIPES)}, got {recipe!r}. Choose one.")
        if not 0 <= text_share <= 1 or (text_share and not text_space):
            raise ValueError(f"reconstructor.text_share: expected a share in [0, 1], and 0 without text_space, got "
                             f"{text_share} with text_space={text_space}. Correct one of them.")
        if n_steps < 1 or not 0 < strength <= 1 or int(n_steps * strength) < 1:
            raise ValueError(f"reconstructor.strength: expected a share in (0, 1] that leaves at least one step, got "
                             f"{strength} of {n_steps} steps. Raise strength or n_steps.")

    @cached_property
    def _configs(self) -> dict[str, Mapping[str, Any]]:
        """The configurations of UNet, autoencoder and text encoder, read without their weights."""
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextConfig

        try:
            configs = {"unet": UNet2DConditionModel.load_config(locate(self.model), subfolder="image_unet"),
                       "vae": AutoencoderKL.load_config(locate(self.model), subfolder="vae")}
        except (OSError, ValueError) as error:
            if is_of_the_system(error):
                raise
            raise ValueError(f"reconstructor.model: expected the folder of a Versatile Diffusion pipeline "
                             f"(safetensors), got {type(error).__name__} for {self.model!r}: "
                             f"{str(error).splitlines()[0]} Give such a folder or hub id, or download it on a machine "
                             "with network access first.") from error
        text = load_config(CLIPTextConfig, self.model, what="reconstructor.model", subfolder="text_encoder")
        return {**configs, "text": text.to_dict()}

    @cached_property
    def _pipeline(self) -> Any:
        import diffusers
        from diffusers.pipelines.deprecated.versatile_diffusion.modeling_text_unet import UNetFlatConditionModel
        from transformers import CLIPImageProcessor, CLIPTextModelWithProjection, CLIPVisionModelWithProjection

        what, dtype = "reconstructor.model", torch.float16 if self.device.startswith("cuda") else torch.float32
        # part by part: diffusers finds no class under the name that the published index has for the UNet for captions
        parts = {name: load_diffusers(cls, self.model, what=what, kind=f"the {name} of Versatile Diffusion",
                                      subfolder=name, dtype=dtype).to(self.device)
                 for name, cls in (("image_unet", diffusers.UNet2DConditionModel),
                                   ("text_unet", UNetFlatConditionModel), ("vae", diffusers.AutoencoderKL))}
        parts |= {name: load_model(cls, self.model, what=what, device=self.device, dtype=dtype, subfolder=name)
                  for name, cls in (("text_encoder", CLIPTextModelWithProjection),
                                    ("image_encoder", CLIPVisionModelWithProjection))}
        parts |= {name: load_config(cls, self.model, what=what, subfolder=name, file=file)
                  for name, cls, file in (("scheduler", diffusers.PNDMScheduler, "scheduler_config.json"),
                                          ("image_feature_extractor", CLIPImageProcessor, "preprocessor_config.json"))}
        return self._ready(diffusers.VersatileDiffusionDualGuidedPipeline(
            **parts, tokenizer=load_tokenizer(self.model, what=what, subfolder="tokenizer")))

    def _ready(self, pipeline: Any) -> Any:
        """Merge the two UNets and set the sampler."""
        import diffusers
        from diffusers.models import DualTransformer2DModel

        pipeline.remove_unused_weights()
        for part in pipeline.image_unet.modules():
            if isinstance(part, DualTransformer2DModel):
                part.forward = _without_masks(part.forward)
        settings = {**pipeline.scheduler.config, "clip_sample": False, "thresholding": False}
        pipeline.scheduler = getattr(diffusers, RECIPES[self.recipe]).from_config(settings)
        for part in (pipeline.image_unet, pipeline.vae, pipeline.text_encoder, pipeline.image_encoder):
            part.eval().requires_grad_(False)
        pipeline.set_transformer_params(self.text_share, ("text", "image"))
        return pipeline

    def uid(self) -> str:
        """Return the identity of all weights."""
        return (identity(self.model) if self.start is None or isinstance(self.start, str)
                else digest([identity(self.model), self.start.uid()]))

    def check(self, specs: Mapping[str, EmbeddingSpec]) -> None:
        """Refuse embeddings that are not what the model reads, by their shapes.

        Raises
        ------
        ValueError
            If a shape or a uid does not fit.
        """
        unet, vae, text = (self._configs[part] for part in ("unet", "vae", "text"))
        width = unet["cross_attention_dim"]
        for space, expected in ((self.space, (IMAGE_TOKENS, width)),
                                (self.text_space, (text["max_position_embeddings"], width))):
            if space and specs[space].shape != expected:
                raise ValueError(f"{self.model}: expected tokens of shape {expected}, got {specs[space].shape} in "
                                 f"space {space!r}. Choose the space of this model's tokens (clip_vit_l14_tokens, "
                                 "clip_text_vit_l14_tokens).")
        check_condition(self.model, condition=specs[self.space])
        if isinstance(self.start, str):
            side = unet["sample_size"]
            latents = (vae["latent_channels"], side, side)
            if specs[self.start].shape != latents:
                raise ValueError(f"{self.model}: expected latents of shape {latents}, got {specs[self.start].shape} "
                                 f"in space {self.start!r}. Choose the latents of this model's autoencoder (vae_sd).")
            check_condition(self.model, latents=specs[self.start])
        elif self.start is not None:
            self.start.check(specs)

    @property
    def fits(self) -> bool:
        """Whether the start looks at training stimuli."""
        return isinstance(self.start, Reconstructor) and self.start.fits

    def fit(self, embeddings: Mapping[str, np.ndarray], stimuli: Stimuli) -> None:
        """Show the training stimuli to the start; see `interfaces.Reconstructor.fit`."""
        if isinstance(self.start, Reconstructor) and self.start.fits:
            self.start.fit(embeddings, stimuli)

    @torch.no_grad()
    def reconstruct(self, embeddings: Mapping[str, Tensor], *, generators: Sequence[Generator]) -> Tensor:
        """Return ``(B, 3, size, size)`` in [0, 1] on the CPU; see `interfaces.Reconstructor.reconstruct`."""
        from diffusers.utils.torch_utils import randn_tensor

        unet, vae, scheduler = self._pipeline.image_unet, self._pipeline.vae, self._pipeline.scheduler
        states = self._tokens(embeddings)
        guided = self.guidance > 1
        if guided:
            states = torch.cat([self._unconditional.expand_as(states), states])
        side = unet.config.sample_size
        scheduler.set_timesteps(self.n_steps, device=unet.device)
        noise = randn_tensor((len(generators), unet.config.in_channels, side, side), generator=list(generators),
                             device=unet.device, dtype=unet.dtype)
        if self.start is None:
            latents, steps = noise * scheduler.init_noise_sigma, scheduler.timesteps
        else:
            left_out = self.n_steps - int(self.n_steps * self.strength)
            steps = scheduler.timesteps[left_out:]
            if hasattr(scheduler, "set_begin_index"):
                scheduler.set_begin_index(left_out)
            latents = scheduler.add_noise(self._start(embeddings, generators), noise, steps[:1].expand(len(noise)))
        for step in steps:
            seen = scheduler.scale_model_input(torch.cat([latents] * 2) if guided else latents, step)
            predicted = unet(seen, step, encoder_hidden_states=states).sample
            if guided:
                away, towards = predicted.chunk(2)
                predicted = away + self.guidance * (towards - away)
            latents = scheduler.step(predicted, step, latents).prev_sample
        return (vae.decode(latents / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1).float().cpu()

    def _tokens(self, embeddings: Mapping[str, Tensor]) -> Tensor:
        """Return the tokens ``(B, L + 257, D)`` of caption and picture as the recipe has them."""
        unet = self._pipeline.image_unet
        image = self._prepared(embeddings[self.space])
        if self.text_space:
            text = self._prepared(embeddings[self.text_space])
        else:
            text = image.new_zeros(len(image), self._configs["text"]["max_position_embeddings"], image.shape[2])
        return torch.cat([text, image], dim=1).to(device=unet.device, dtype=unet.dtype)

    def _prepared(self, tokens: Tensor) -> Tensor:
        return tokens / (tokens[:, :1].norm(dim=-1, keepdim=True) + 1e-6) if self.recipe == "mindeye" else tokens

    @cached_property
    def _unconditional(self) -> Tensor:
        """The tokens ``(1, L + 257, D)`` that guidance leads away from."""
        pipeline = self._pipeline
        unet = pipeline.image_unet
        if self.recipe == "mindeye":
            n_text = self._configs["text"]["max_position_embeddings"]
            return torch.zeros(1, n_text + IMAGE_TOKENS, unet.config.cross_attention_dim, device=unet.device,
                               dtype=unet.dtype)
        with torch.no_grad():
            words = pipeline.tokenizer("", padding="max_length", max_length=pipeline.tokenizer.model_max_length,
                                       return_tensors="pt").input_ids.to(unet.device)
            encoded = pipeline.text_encoder(words)
            text = pipeline.text_encoder.text_projection(encoded.last_hidden_state) / encoded.text_embeds.norm(dim=-1)
            extractor, vision = pipeline.image_feature_extractor, pipeline.image_encoder
            mean, std = (torch.tensor(x)[:, None, None] for x in (extractor.image_mean, extractor.image_std))
            side = vision.config.image_size
            grey = ((0.5 - mean) / std).expand(1, 3, side, side).to(device=unet.device, dtype=unet.dtype)
            image = vision.visual_projection(vision.vision_model.post_layernorm(
                vision.vision_model(grey).last_hidden_state))
            return torch.cat([text, image / image[:, :1].norm(dim=-1, keepdim=True)], dim=1)

    def _start(self, embeddings: Mapping[str, Tensor], generators: Sequence[Generator]) -> Tensor:
        """Return the latents ``(B, 4, h, w)``, times the scaling factor, to start from."""
        unet, vae = self._pipeline.image_unet, self._pipeline.vae
        assert self.start is not None
        if isinstance(self.start, str):
            return embeddings[self.start].to(device=unet.device, dtype=unet.dtype)
        size = unet.config.sample_size * 2 ** (len(vae.config.block_out_channels) - 1)
        pictures = resized(self.start.reconstruct(embeddings, generators=generators), (size, size))
        encoded = vae.encode(2 * pictures.to(device=unet.device, dtype=unet.dtype) - 1).latent_dist
        return encoded.mean * vae.config.scaling_factor

    @classmethod
    def tiny(cls) -> Self:
        """Return untrained networks: 32 x 32 pixels in two steps from tokens ``(257, 16)`` and ``(12, 16)``."""
        tiny = cls(model="tiny", text_space="clip_text", text_share=0.4, n_steps=2, device="cpu")
        pipeline = tiny_pipeline()
        tiny._configs = {"unet": pipeline.image_unet.config, "vae": pipeline.vae.config,
                         "text": pipeline.text_encoder.config.to_dict()}
        tiny._pipeline = tiny._ready(pipeline)
        return tiny


def _without_masks(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return the forward of a dual transformer as the UNets of diffusers call it today, with masks that are None."""
    def call(hidden_states: Tensor, *, encoder_attention_mask: None = None, **named: Any) -> Any:
        assert encoder_attention_mask is None
        return forward(hidden_states, **named)

    return call


def tiny_pipeline() -> Any:
    """Return an untrained pipeline of the published kinds of blocks, whose text encoder reads 12 letters."""
    import diffusers
    from diffusers.pipelines.deprecated.versatile_diffusion.modeling_text_unet import UNetFlatConditionModel
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    sizes: dict[str, Any] = {"sample_size": 16, "block_out_channels": (8, 16), "layers_per_block": 1,
                             "norm_num_groups": 4, "attention_head_dim": 2, "cross_attention_dim": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return diffusers.VersatileDiffusionDualGuidedPipeline(
            tokenizer=tiny_clip_tokenizer(), text_encoder=tiny_clip_text(width=16, projection=16),
            image_feature_extractor=CLIPImageProcessor(size=32, crop_size=32),
            image_encoder=CLIPVisionModelWithProjection(CLIPVisionConfig(
                hidden_size=16, intermediate_size=32, projection_dim=16, num_hidden_layers=1, num_attention_heads=2,
                image_size=32, patch_size=2)),
            image_unet=diffusers.UNet2DConditionModel(
                **sizes, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")),
            text_unet=UNetFlatConditionModel(
                **sizes, in_channels=(4, 1, 1), out_channels=(4, 1, 1), mid_block_type="UNetMidBlockFlatCrossAttn",
                down_block_types=("CrossAttnDownBlockFlat", "DownBlockFlat"),
                up_block_types=("UpBlockFlat", "CrossAttnUpBlockFlat")),
            vae=diffusers.AutoencoderKL(
                block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4,
                up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4),
            scheduler=diffusers.PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                                              skip_prk_steps=True, steps_offset=1))

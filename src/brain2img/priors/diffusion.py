"""A small diffusion model of a space's embeddings, conditioned on decoded ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from brain2img.devices import device_of
from brain2img.interfaces import Prior
from brain2img.priors.fitted import pairs, read_arrays, read_shape, rows, write_fitted
from brain2img.priors.networks import EmbeddingUNet, PriorNetwork
from brain2img.step_training import StepPlan, train

PREDICTIONS = ("v_prediction", "epsilon", "sample")
SAMPLERS = ("dpm", "ddim", "ddpm")
SCALES = ("standardise", "sqrt_width", "none")
BETAS = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
CHUNK = 1024
"""Rows that are sampled at once, of embeddings of up to 16 tokens."""


class DiffusionPrior(Prior):
    """Draws embeddings of the space by denoising, guided by the decoded embedding.

    After ATM (Li et al. 2024, arXiv:2403.07721, https://github.com/dongyangli-del/EEG_Image_decode), with what is noted
    about it mended: predictions and true embeddings are standardised per dimension and the scheduler does not clip
    (there, samples are clipped to +-1 at every step, where 8 % of the entries of CLIP embeddings lie beyond), the
    weights are averaged (EMA), v-prediction is possible, and 20 steps of a deterministic solver replace 50 of
    ancestral sampling. As there: 1000 training steps with linear betas, mean squared error, conditions dropped with
    probability 0.1. There guidance is 5; with 1 a sample is one of the embeddings that the prediction leaves possible.
    ``prior=atm`` is its published size and recipe with the mended scale, ``prior=atm_published`` its recipe as it is:
    raw embeddings, ``noising: {clip: 1.0, spacing: leading}``, ``condition_dropout: [0.1, batch]``, no averaging.

    The prior of MindEye (Scotti et al. 2023, arXiv:2305.18274) is this one with its own network, ``prediction:
    sample``, ``condition_dropout: 0.2``, ``noising: {n_times: 100, betas: cosine}``, ``scale: sqrt_width``, ``sampler:
    ddpm`` and 100 steps, trained jointly with the decoder (`brain2img.losses.PriorLoss`). MindEye2's has ``scale:
    none`` and 20 steps (there DDIM with eta 1, which is the same).

    Parameters
    ----------
    network
        Makes the network for ``shape=...``: one of `brain2img.priors.networks`.
    training
        See `brain2img.step_training.StepPlan`, all but the seed.
    seed
        Of the initial weights and the training.
    prediction
        What the network predicts: "v_prediction", "epsilon" (the noise; its error is multiplied by 160 in the first
        step of sampling, so that a network that is small or not trained long leaves the manifold) or "sample" (the
        embedding).
    condition_dropout
        Share of the rows trained without condition; ``[0.1, batch]`` for whole batches without, one in ten.
    guidance
        Factor on the difference that the condition makes; 1 for none.
    sampler
        "dpm" (DPM-Solver++ of second order) or "ddim", both deterministic, given the first noise; or "ddpm", which
        adds noise in every step.
    n_steps
        Steps of the sampler.
    noising
        `n_times`, time steps of the training; `betas`, "linear" or "cosine" (s = 0.008); `clip`, the largest absolute
        value of the sample that a step of "ddim" or "ddpm" predicts, or None; and `spacing` of the steps of sampling,
        "trailing" or "leading" (which does not begin with pure noise).
    scale
        Scale of embeddings in the network: "standardise", each dimension by mean and standard deviation of the rows of
        the fit (trained jointly: true ones so, decoded ones as they are); "sqrt_width", true ones times the square root
        of D, decoded ones as they are (MindEye); "none".

    Raises
    ------
    ValueError
        If a setting is none of these.
    """

    def __init__(self, *, network: Callable[..., PriorNetwork], training: Mapping[str, Any], seed: int = 0,
                 prediction: str = "v_prediction", condition_dropout: float | Sequence[Any] = 0.1,
                 guidance: float = 1.0, sampler: str = "dpm", n_steps: int = 20,
                 noising: Mapping[str, Any] | None = None, scale: str = "standardise") -> None:
        from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

        self.noising = {"n_times": 1000, "betas": "linear", "clip": None, "spacing": "trailing", **(noising or {})}
        for name, value, known in (("prediction", prediction, PREDICTIONS), ("sampler", sampler, SAMPLERS),
                                   ("scale", scale, SCALES), ("noising.betas", self.noising["betas"], tuple(BETAS)),
                                   ("noising.spacing", self.noising["spacing"], ("trailing", "leading"))):
            if value not in known:
                raise ValueError(f"diffusion prior: expected {name} of {known}, got {value!r}. Correct prior.{name}.")
        self._make, self.training, self.seed = network, dict(training), seed
        self.plan = StepPlan(**self.training, seed=seed)
        self.prediction, self.guidance = prediction, guidance
        dropped = condition_dropout if isinstance(condition_dropout, Sequence) else (condition_dropout, "rows")
        if len(dropped) != 2 or not 0 <= dropped[0] <= 1 or dropped[1] not in ("rows", "batch"):
            raise ValueError("diffusion prior: expected condition_dropout as a share in [0, 1], or [share, batch], got "
                             f"{condition_dropout}. Correct prior.condition_dropout.")
        self._dropped = (dropped[0], dropped[1])
        self.sampler, self.n_steps, self.scale = sampler, n_steps, scale
        clip = self.noising["clip"]
        if len(self.noising) != 4 or not 1 <= n_steps <= self.noising["n_times"]:
            raise ValueError("diffusion prior: expected n_times and betas in noising (and clip and spacing of its "
                             f"sampling), and 1 to n_times steps, got {self.noising} and n_steps={n_steps}. Correct "
                             "prior.noising or prior.n_steps.")
        if clip is not None and (clip <= 0 or sampler == "dpm"):
            raise ValueError("diffusion prior: expected noising.clip above 0 with sampler ddim or ddpm, got "
                             f"{clip} with {sampler}. Set prior.noising.clip=null, or choose another sampler.")
        self._noising = DDPMScheduler(num_train_timesteps=int(self.noising["n_times"]),
                                      beta_schedule=BETAS[self.noising["betas"]],
                                      prediction_type=prediction, clip_sample=False)
        solver = {"dpm": DPMSolverMultistepScheduler, "ddim": DDIMScheduler, "ddpm": DDPMScheduler}[sampler]
        self._solver = solver.from_config(self._noising.config, timestep_spacing=self.noising["spacing"],
                                          **({"clip_sample": True, "clip_sample_range": clip} if clip else {}))
        self._shape: tuple[int, ...] | None = None
        self.model: nn.Module | None = None

    @property
    def _settings(self) -> dict[str, Any]:
        make = self._make if isinstance(self._make, partial) else partial(self._make)
        return {"class": "DiffusionPrior", "network": {"class": make.func.__name__, **make.keywords},
                "training": self.training, "seed": self.seed, "prediction": self.prediction,
                "condition_dropout": self._dropped[0] if self._dropped[1] == "rows" else list(self._dropped),
                "noising": {key: self.noising[key] for key in ("n_times", "betas")}, "scale": self.scale}

    def start(self, shape: tuple[int, ...]) -> nn.Module:
        """Make the network for embeddings of this shape, untrained and not yet standardising; returns it as `model`.

        A decoder that trains the prior jointly calls this and `observe`, and optimises the parameters of `model` by
        `training_loss`. It may set the buffers ``mean_in`` and ``std_in``, each of this shape.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = nn.Module()
            model.add_module("network", self._make(shape=tuple(shape)))
        for name in ("mean_in", "mean_out"):
            model.register_buffer(name, torch.zeros(shape))
        for name in ("std_in", "std_out"):
            model.register_buffer(name, torch.ones(shape))
        if self.scale == "sqrt_width":
            model.std_out /= shape[-1] ** 0.5
        self._shape, self.model = tuple(shape), model
        return model

    def fit(self, predicted: np.ndarray, true: np.ndarray, *, folder: Path) -> None:
        """Train on the pairs; see `Prior.fit`."""
        given, wanted = pairs(predicted, true, what="diffusion prior")
        shape = predicted.shape[1:]
        model = self.start(shape)
        self._standardise("in", given)
        self.observe(lambda: wanted)
        device = device_of()
        model.to(device)
        contexts, targets = (torch.from_numpy(v).reshape(-1, *shape).to(device) for v in (given, wanted))

        def loss(places: np.ndarray, generator: Generator) -> dict[str, Tensor]:
            chosen = torch.from_numpy(places).to(device)
            return {"mse": self.training_loss(contexts[chosen], targets[chosen], generator=generator)}

        train(model, loss, n_items=len(given), plan=self.plan, folder=folder, description="diffusion prior")
        model.cpu()

    def observe(self, targets: Callable[[], np.ndarray]) -> None:
        """Take mean and standard deviation of true embeddings ``(n, ...)`` where it standardises; see `Prior`."""
        if self.scale == "standardise":
            self._standardise("out", targets())

    def _standardise(self, name: str, values: np.ndarray) -> None:
        if self.scale != "standardise":
            return
        values = values.reshape(len(values), -1)
        mean, std = values.mean(axis=0, dtype=np.float64), values.std(axis=0, dtype=np.float64)
        std[std <= 1e-6 * np.abs(mean)] = 1  # constant: what is left is rounding
        for moment, value in (("mean", mean), ("std", std)):
            buffer = getattr(self._model(), f"{moment}_{name}")
            buffer.copy_(torch.from_numpy(value).reshape(buffer.shape))

    def training_loss(self, context: Tensor, target: Tensor, *, generator: Generator) -> Tensor:
        """Return the mean squared error of what the network predicts.

        Parameters
        ----------
        context, target
            ``(B, *shape)`` decoded and true embeddings, not standardised.
        generator
            Source of noise, time steps and dropped conditions (on the CPU).

        Raises
        ------
        ValueError
            If neither `fit`, `load` nor `start` was called.
        """
        model, noising = self._model(), self._noising
        device = target.device
        noise = torch.randn(target.shape, generator=generator).to(device)
        t = torch.randint(0, noising.config.num_train_timesteps, (len(target),), generator=generator).to(device)
        share, of = self._dropped
        drawn = torch.rand(len(target) if of == "rows" else 1, 1, generator=generator)
        keep = (drawn >= share).float().expand(len(target), 1).to(device)
        clean = (target - model.mean_out) / model.std_out
        wanted = {"epsilon": noise, "sample": clean}.get(self.prediction)
        if wanted is None:
            wanted = noising.get_velocity(clean, noise, t)
        predicted = model.network(noising.add_noise(clean, noise, t), t, (context - model.mean_in) / model.std_in, keep)
        return F.mse_loss(predicted, wanted)

    def _model(self) -> Any:
        if self.model is None:
            raise ValueError("diffusion prior: expected a network, got none yet. Call fit, load or start first.")
        return self.model

    @torch.inference_mode()
    def sample(self, predicted: np.ndarray, *, generators: Sequence[Generator]) -> np.ndarray:
        """Return one sample for each prediction; see `Prior.sample`."""
        given = rows(predicted, self._shape, what="diffusion prior").reshape(predicted.shape)
        assert len(generators) == len(given), "one generator a row"
        device = device_of()
        model = self._model().to(device).eval()
        out = np.empty_like(given)
        size = max(1, min(CHUNK, 16 * CHUNK // (1, *predicted.shape[1:])[-2]))
        for start in range(0, len(given), size):
            part = slice(start, start + size)
            context = (torch.from_numpy(given[part]).to(device) - model.mean_in) / model.std_in
            noise = torch.stack([torch.randn(predicted.shape[1:], generator=g) for g in generators[part]])
            x = self._denoise(noise.to(device), context, generators=generators[part])
            out[part] = (x * model.std_out + model.mean_out).float().cpu().numpy()
        return out

    def _denoise(self, x: Tensor, context: Tensor, *, generators: Sequence[Generator]) -> Tensor:
        network, seen = self._model().network, x.new_ones(len(x), 1)
        self._solver.set_timesteps(self.n_steps, device=x.device)
        for t in self._solver.timesteps:
            times = t.expand(len(x))
            predicted = network(x, times, context, seen)
            if self.guidance != 1:
                alone = network(x, times, context, 0 * seen)
                predicted = alone + self.guidance * (predicted - alone)
            x = self._solver.step(predicted, t, x, generator=list(generators)).prev_sample
        return x

    def save(self, folder: Path) -> None:
        """Write weights and statistics."""
        assert self._shape is not None, "save comes after fit"
        write_fitted(folder, {k: v.cpu().numpy() for k, v in self._model().state_dict().items()}, shape=self._shape,
                     settings=self._settings)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote; refuses other settings, sizes or keys. Sampler, steps and guidance may differ."""
        model = self.start(read_shape(folder, settings=self._settings))
        arrays = read_arrays(folder, model.state_dict())
        model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
        model.eval()

    @classmethod
    def tiny(cls) -> Self:
        """Return a prior that trains in a second."""
        return cls(network=partial(EmbeddingUNet, hidden=(32, 16), time_width=16, dropout=0.0),
                   training={"steps": 20, "batch_size": 16, "lr": 1e-3})

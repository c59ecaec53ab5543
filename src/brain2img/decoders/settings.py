"""How a deep decoder is trained: settings, randomness, reading and checking checkpoints."""

from __future__ import annotations

import fnmatch
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from brain2img.artifacts import read_torch_file, reading

log = logging.getLogger(__name__)

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
SCHEDULES = ("onecycle", "cosine", "none")
OPTIMIZERS = ("AdamW", "Adam")
DECAYED = ("weights", "weights_and_norms", "all")


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """The `trainer` group of the configuration.

    Parameters
    ----------
    max_epochs
        Epochs at most.
    batch_size
        Trials in a batch, all subjects together.
    optimizer
        "AdamW" or "Adam", which adds its decay to the gradient.
    lr, betas, eps, weight_decay
        Of the optimizer.
    decay
        What is decayed: "weights" (no biases, norms or scalars), "weights_and_norms" (as in the published training of
        MindBridge and MindEye, whose rule looks for "Norm" in names that do not hold it) or "all" (ATM).
    decay_also
        Patterns of names of parameters that are decayed, too, as in a shell: "adapter.*", "*.g".
    schedule
        Per optimizer step: "onecycle" (cosine, from lr / 25 up and down again), "cosine" (from lr to 0) or "none".
    pct_start
        Share of the steps that warms up ("onecycle").
    final_div_factor
        What the last learning rate of "onecycle" is below the first: lr / 2500 with 100.
    precision
        "32-true", "bf16-mixed" or "16-mixed".
    accelerator
        As for `lightning.Trainer`.
    accumulate
        Batches per optimizer step.
    gradient_clip
        Largest L2 norm of the gradient, or None.
    ema
        Decay of the averaged weights, in (0, 1), or None for none. They are what is validated and kept.
    repetitions
        "single" trials; "mean": all repetitions of a stimulus averaged; "resample": every trial averaged with a random
        number of other repetitions, anew in each epoch.
    monitor
        "val/top1" (retrieval by the first head that is a prediction), "val/<head>/top1" or the name of a validation
        loss, which chooses ``best.ckpt`` and stops early; or "last": the weights of the last epoch are kept.
    drop_last
        Leave out the last, smaller batch of an epoch, unless it is the only one.
    random_balance
        Multiply two sums, the losses of joint priors and all others of the heads, by softmax(randn(2)) in every step of
        training (STTM, arXiv:2403.06361).
    patience
        Validations without improvement before stopping, or None.
    check_val_every
        Epochs from one validation to the next.
    keep_last
        Keep the weights of so many last epochs, too (``epochs/``): for `stages.legacy_last_epochs_mean` alone.
    """

    max_epochs: int
    batch_size: int = 256
    optimizer: str = "AdamW"
    lr: float = 3e-4
    betas: Sequence[float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    decay: str = "weights"
    decay_also: Sequence[str] = ()
    schedule: str = "onecycle"
    pct_start: float = 0.1
    final_div_factor: float = 100.0
    precision: str = "32-true"
    accelerator: str = "auto"
    accumulate: int = 1
    gradient_clip: float | None = None
    ema: float | None = None
    random_balance: bool = False
    repetitions: str = "single"
    monitor: str = "val/loss"
    drop_last: bool = True
    patience: int | None = None
    check_val_every: int = 1
    keep_last: int = 0

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> TrainingSettings:
        """Build the settings from the `trainer` group.

        Raises
        ------
        ValueError
            If a key is unknown or a value impossible.
        """
        values = dict(values)
        if values.pop("decay_norms", False):  # of a run that was trained before `decay`
            values["decay"] = "weights_and_norms"
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                raise ValueError(f"trainer: expected keys of {known}, got {key!r}. Correct the trainer group.")
        if "max_epochs" not in values:
            raise ValueError("trainer: expected max_epochs, got none. Set trainer.max_epochs.")
        settings = cls(**values)
        for name, choices in (("precision", PRECISIONS), ("schedule", SCHEDULES), ("optimizer", OPTIMIZERS),
                              ("decay", DECAYED)):
            if getattr(settings, name) not in choices:
                raise ValueError(f"trainer.{name}: expected one of {choices}, got {getattr(settings, name)!r}. "
                                 "Correct it.")
        for name in ("max_epochs", "batch_size", "accumulate", "check_val_every"):
            if getattr(settings, name) < 1:
                raise ValueError(f"trainer.{name}: expected 1 or more, got {getattr(settings, name)}. Correct it.")
        if len(settings.betas) != 2 or not all(0 <= beta < 1 for beta in settings.betas):
            raise ValueError(f"trainer.betas: expected two numbers in [0, 1), got {list(settings.betas)}. Correct it.")
        if settings.monitor == "last" and settings.patience is not None:
            raise ValueError(f"trainer.patience: expected null where the last epoch is kept (trainer.monitor=last), "
                             f"got {settings.patience}. Set one of them.")
        if settings.keep_last < 0:
            raise ValueError(f"trainer.keep_last: expected 0 or more epochs, got {settings.keep_last}. Correct it.")
        if settings.ema is not None and not 0 < settings.ema < 1:
            raise ValueError(f"trainer.ema: expected a decay between 0 and 1 or null, got {settings.ema}. Correct it.")
        return settings

    def optimizer_of(self, module: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer of what can be trained in a module, in two groups: decayed, and not.

        Raises
        ------
        ValueError
            If a pattern of `decay_also` fits no name.
        """
        known = dict(module.named_parameters())
        trained = {name: p for name, p in known.items() if p.requires_grad}
        also = {name for pattern in self.decay_also for name in self._fitting(pattern, list(known))}
        decayed = [name for name, p in trained.items()
                   if p.ndim > 1 or self.decay == "all" or name in also
                   or (self.decay == "weights_and_norms" and p.ndim == 1 and name.endswith("weight"))]
        free = [name for name in trained if name not in set(decayed)]
        return getattr(torch.optim, self.optimizer)(
            [{"params": [trained[name] for name in names], "weight_decay": decay}
             for names, decay in ((decayed, self.weight_decay), (free, 0.0))],
            lr=self.lr, betas=tuple(self.betas), eps=self.eps,
            fused=self.precision != "16-mixed")  # in one pass over memory; in float16 Lightning could not clip

    @staticmethod
    def _fitting(pattern: str, names: list[str]) -> list[str]:
        fitting = fnmatch.filter(names, pattern)
        if not fitting:
            raise ValueError(f"trainer.decay_also: expected patterns of names of parameters, got {pattern!r}, which "
                             f"fits none of {', '.join(names[:3])}, ... Correct or remove it.")
        return fitting

    @property
    def larger_is_better(self) -> bool:
        """Whether a larger value of `monitor` is better."""
        return self.monitor.endswith("top1")


def epoch_file(epoch: int) -> str:
    """Return where in a fold's folder the weights of one epoch (from 0) are kept."""
    return f"epochs/epoch-{epoch:04d}.ckpt"


@contextmanager
def own_randomness() -> Iterator[None]:
    """Leave the global generators of torch, NumPy and Python as they were."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        with torch.random.fork_rng():
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)


def seed_epoch(seed: int, epoch: int) -> torch.Generator:
    """Seed the global generators (dropout uses them) and return one for augmentation, from seed and epoch alone.

    A resumed fit meets in every epoch the generators that an uninterrupted one meets, whatever happened in between:
    this is why no generator state needs to stand in the checkpoint.
    """
    state = np.random.SeedSequence([seed, epoch]).generate_state(3)
    torch.manual_seed(int(state[0]))
    np.random.seed(int(state[1]))  # noqa: NPY002
    random.seed(int(state[1]))
    return torch.Generator().manual_seed(int(state[2]))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without running any code in it.

    Raises
    ------
    ValueError
        If the file is missing, damaged or changed since it was written.
    """
    with reading(path, "a trained model"):
        pass  # it is there, a file that this user may read, and as it was written
    checkpoint = read_torch_file(path, what=f"checkpoint {path}", cure="Move it away and train again.")
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), Mapping):
        got = f"one with {sorted(map(str, checkpoint))}" if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise ValueError(f"checkpoint {path}: expected a checkpoint of this project, got {got}. Weights from elsewhere "
                         "come in by brain2img import_weights.")
    return checkpoint

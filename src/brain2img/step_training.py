"""Training in steps, with exact resume: how small backbones and priors are trained.

Decoders, whose batches are ragged and whose validation matters, are trained by Lightning (`decoders.deep`).
"""

from __future__ import annotations

import csv
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Generator, Tensor, nn
from torch.optim.swa_utils import AveragedModel

from brain2img.artifacts import read_torch_file, writing
from brain2img.schedule import cosine_ramp, moving_average

log = logging.getLogger(__name__)

Loss = Callable[[np.ndarray, Generator], dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """How long and how fast to train.

    Parameters
    ----------
    steps
        Optimizer steps in all.
    batch_size
        Items of a step.
    lr
        Largest learning rate of AdamW (betas 0.9 and 0.99): linear warm-up, then half a cosine down to zero.
    weight_decay
        Of weights with two or more axes; biases, norms and scalars are not decayed.
    warmup
        Steps of the warm-up.
    ema
        Decay of the averaged weights, in (0, 1): they are the result. None for the last weights.
    gradient_clip
        Largest L2 norm of the gradient.
    seed
        Of order, noise and dropout.
    checkpoint_every
        Steps from one checkpoint to the next.
    """

    steps: int
    batch_size: int
    lr: float
    weight_decay: float = 0.01
    warmup: int = 50
    ema: float | None = None
    gradient_clip: float = 1.0
    seed: int = 0
    checkpoint_every: int = 100

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1 or self.checkpoint_every < 1:
            raise ValueError(f"training plan: expected steps, batch_size and checkpoint_every of 1 or more, got "
                             f"{self.steps}, {self.batch_size}, {self.checkpoint_every}. Correct them.")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"training plan: expected ema between 0 and 1 or none, got {self.ema}. Correct it.")

    def lr_at(self, step: int) -> float:
        """Return the learning rate of a step (0 is the first), of its number alone: resuming needs no scheduler."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        return cosine_ramp(self.lr, 0.0, step=step - self.warmup, n_steps=self.steps - self.warmup + 1)

    def indices(self, step: int, *, n_items: int) -> np.ndarray:
        """Return the items ``(batch_size,)`` of a step: epoch after epoch in random order, from seed and step alone."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, places = np.divmod(positions, n_items)
        orders = {e: np.random.default_rng([self.seed, int(e)]).permutation(n_items) for e in np.unique(epochs)}
        return np.array([orders[e][p] for e, p in zip(epochs, places, strict=True)])


def log_shares(given: Tensor, of: Tensor) -> Tensor:
    """Return ``(G, K)`` logarithms of how often each class of `of` ``(N, K)`` is met with each of `given` ``(N, G)``.

    Both are one-hot; what never occurs has the logarithm of 1e-4. Added to the logits of a classifier while it learns,
    they leave it nothing to gain from guessing `of` from `given` (logit adjustment, Menon et al. 2021,
    https://arxiv.org/abs/2007.07314).
    """
    counts = given.T @ of
    return (counts / counts.sum(1, keepdim=True).clamp_min(1)).clamp_min(1e-4).log()


def train(model: nn.Module, loss: Loss, *, n_items: int, plan: StepPlan, folder: Path, description: str) -> None:
    """Train `model` in place, going on from the checkpoint in `folder` if there is one.

    Everything random in a step follows from the seed and the number of the step, so a run that was interrupted ends
    with the weights of one that was not. The terms of the loss are appended to ``losses.csv``.

    Parameters
    ----------
    model
        Its weights are replaced by the trained ones (averaged ones, if the plan says so); left in evaluation mode.
    loss
        Maps items ``(batch_size,)`` and a generator to named terms, which are added; the model is in training mode.
    n_items
        Number of training items.
    plan
        Length and speed.
    folder
        Holds ``checkpoint.pt`` and ``losses.csv``.
    description
        What the progress bar and the log call it.

    Raises
    ------
    ValueError
        If the checkpoint was made by another plan or model, or if the loss is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = _State(model, plan, folder / "checkpoint.pt", description)
    began, first = time.monotonic(), state.step
    running: dict[str, list[float]] = {}
    model.train()
    with Progress(TextColumn(f"{description} {{task.fields[loss]}}"), BarColumn(), MofNCompleteColumn(),
                  TimeRemainingColumn(), transient=True, disable=not sys.stdout.isatty()) as bar:
        task = bar.add_task("", total=plan.steps, completed=state.step, loss="")
        while state.step < plan.steps:
            terms = state.take(loss, n_items)
            for name, value in terms.items():
                running.setdefault(name, []).append(value)
            bar.update(task, completed=state.step, loss=f"{sum(terms.values()):.4f}")
            if state.step % plan.checkpoint_every == 0 or state.step == plan.steps:
                means = {name: float(np.mean(values)) for name, values in running.items()}
                _append(folder / "losses.csv", {"step": state.step, **means})
                state.save()
                rate = (time.monotonic() - began) / (state.step - first)
                log.info("%s: step %d of %d, %s, %.2f s a step", description, state.step, plan.steps,
                         ", ".join(f"{k} {v:.4f}" for k, v in means.items()), rate)
                running = {}
    model.load_state_dict(state.result())
    model.eval()


class _State:
    """Model, optimizer, averaged weights and step, as they stand in the checkpoint."""

    def __init__(self, model: nn.Module, plan: StepPlan, path: Path, description: str) -> None:
        self.model, self.plan, self.path, self.description, self.step = model, plan, path, description, 0
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            [{"params": [p for p in parameters if p.ndim > 1], "weight_decay": plan.weight_decay},
             {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}],
            lr=plan.lr, betas=(0.9, 0.99), fused=True)
        self.average = None if plan.ema is None else AveragedModel(
            model, multi_avg_fn=moving_average(plan.ema), use_buffers=True)
        if path.exists():
            self._load()

    def _load(self) -> None:
        again = f"Move {self.path.parent} away to begin anew."
        stored = read_torch_file(self.path, what=f"checkpoint {self.path}", cure=again)
        shapes = {k: tuple(v.shape) for k, v in self.model.state_dict().items()}
        got = {k: tuple(v.shape) for k, v in stored["model"].items()}
        if stored["plan"] != vars(self.plan) or got != shapes:
            changed = [f"{k}: {stored['plan'].get(k)} there, {v} here" for k, v in vars(self.plan).items()
                       if stored["plan"].get(k) != v] or ["the layers of the model"]
            raise ValueError(f"checkpoint {self.path}: expected one of the same plan and model, got another "
                             f"({'; '.join(changed)}). {again}")
        self.model.load_state_dict(stored["model"])
        self.optimizer.load_state_dict(stored["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(stored["average"])
        self.step = stored["step"]

    def save(self) -> None:
        average = {} if self.average is None else {"average": self.average.state_dict()}
        with writing(self.path) as temporary:
            torch.save({"plan": vars(self.plan), "step": self.step, "model": self.model.state_dict(),
                        "optimizer": self.optimizer.state_dict(), **average}, temporary)

    def take(self, loss: Loss, n_items: int) -> dict[str, float]:
        """Do one step and return the terms of the loss."""
        plan = self.plan
        seeds = np.random.SeedSequence([plan.seed, self.step]).generate_state(2)
        for group in self.optimizer.param_groups:
            group["lr"] = plan.lr_at(self.step)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(seeds[0]))  # dropout
            terms = loss(plan.indices(self.step, n_items=n_items), Generator().manual_seed(int(seeds[1])))
        total = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(total):
            raise ValueError(f"{self.description}: expected a finite loss, got {total.item()} at step {self.step + 1}. "
                             "Lower the learning rate; the last checkpoint is kept.")
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), plan.gradient_clip)
        self.optimizer.step()
        self.step += 1
        if self.average is not None:
            self.average.update_parameters(self.model)
        return {name: float(value.detach()) for name, value in terms.items()}

    def result(self) -> dict[str, Tensor]:
        return (self.model if self.average is None else self.average.module).state_dict()


def _append(path: Path, row: dict[str, float]) -> None:
    """Add a line to a table, with its header where it is new."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)

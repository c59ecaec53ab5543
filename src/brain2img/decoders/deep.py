"""The deep decoder: augmentation, subject adapter, encoder and heads, trained end to end."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment

from brain2img.data.once import KeptTrials
from brain2img.decoders.callbacks import (
    AveragedWeights,
    Checkpoints,
    FreedMemory,
    History,
    Progress,
    write_weights,
)
from brain2img.decoders.module import DeepModule
from brain2img.decoders.settings import TrainingSettings, epoch_file, own_randomness, read_checkpoint
from brain2img.devices import device_of
from brain2img.interfaces import Augmentation, Decoder, Encoder, Head, Prior, SubjectAdapter
from brain2img.layers import check_weights
from brain2img.losses import Loss
from brain2img.records import BrainBatch, EmbeddingSpec

log = logging.getLogger(__name__)

EXPECTED = (
    r"The '\w+_dataloader' does not have many workers",  # batches are views of mapped files
    r"You defined a `validation_step` but have no `val_dataloader`",  # a split without validation trials
    r"`isinstance\(treespec, LeafSpec\)` is deprecated")  # Lightning's own business with torch
"""Beginnings of warnings of Lightning that say nothing about a fit of ours."""
CHUNK = 256
"""Trials that are decoded at once."""


class DeepDecoder(Decoder):
    """Augmentation, subject adapter, encoder and heads, trained end to end on all subjects together.

    A fit writes ``last.ckpt`` (all that resuming needs) every epoch, ``best.ckpt`` (weights; the averaged ones where
    `ema` is on) whenever the monitored validation number improves, and ``logs/metrics.csv`` with TensorBoard's files.
    Killed at any moment and called again, it ends with the same bits; work inside an epoch is done again. Without
    validation trials the weights of the last epoch are kept.

    Parameters
    ----------
    adapter, encoder, heads, augmentation
        The parts, built for each other: the adapter's grid is the encoder's. Exactly one head per space has
        ``prediction=True``.
    training
        The `trainer` group: see `brain2img.decoders.settings.TrainingSettings`.
    seed
        Seed of the order of trials, of dropout and of augmentation. The initial weights come with the parts.

    Raises
    ------
    ValueError
        If the parts do not fit each other or a setting is impossible.
    """

    has_parts = True

    def __init__(self, *, adapter: SubjectAdapter, encoder: Encoder, heads: Mapping[str, Head],
                 augmentation: Augmentation | None = None, training: Mapping[str, Any], seed: int = 0) -> None:
        if adapter.grid != encoder.grid:
            raise ValueError(f"deep decoder: expected an adapter onto the encoder's grid {encoder.grid}, got one onto "
                             f"{adapter.grid}. Choose an adapter and an encoder that fit each other.")
        spaces = [head.space for head in heads.values()]
        for space in dict.fromkeys(spaces):
            chosen = [name for name, head in heads.items() if head.space == space and head.prediction]
            if len(chosen) != 1:
                raise ValueError(f"deep decoder, space {space!r}: expected one head with prediction=true, got {chosen}."
                                 " Set prediction=false on the others.")
        if not spaces:
            raise ValueError("deep decoder: expected at least one head, got none. Choose head=[...].")
        for head in heads.values():
            for loss in head.losses.values():
                cast(Loss, loss).prepare(head.spec)
        self.settings, self.seed, self.adapter = TrainingSettings.of(training), seed, adapter
        self.observes = True  # whether losses look at the true embeddings before training; see `take_over`
        self._facts: dict[str, Any] = {}  # epoch and score of the weights
        self.module = DeepModule(adapter=adapter, encoder=encoder, heads=heads, augmentation=augmentation,
                                 settings=self.settings, seed=seed)

    def fit(self, data: Any, *, folder: Path) -> None:
        """Train on the training split of `data`; see the class and `Decoder.fit`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._check(data)
        settings, last = self.settings, folder / "last.ckpt"
        averaged = AveragedWeights(settings.ema, device=self._device()) if settings.ema is not None else None
        history = History(folder / "logs")
        keeper = Checkpoints(folder, settings=settings, history=history, averaged=averaged)
        adapter, once = self.module.adapter, cast(dict[str, Any], {})
        if settings.repetitions != "single":
            once["repetitions"] = settings.repetitions
        elif adapter.has_fixed_part and self.module.augmentation is None:
            once["kept"] = KeptTrials(data, adapter.once, folder=folder)
        if not settings.drop_last:
            once["drop_last"] = False
        loader = data.train_loader(batch_size=settings.batch_size, seed=self.seed, **once)
        if len(loader) == 0:
            raise ValueError("training: expected at least one training trial, got none. Choose another split.")
        pooled = {} if self.before_average is None else {"before_average": self.before_average}
        validation = data.eval_loader("val", batch_size=CHUNK, **pooled) if data.has_validation else None
        if validation is None and settings.patience is not None:
            log.warning("trainer.patience is skipped: this split has no validation trials")
        for _, head in self.module.named_heads() if self.observes else ():
            head.observe(lambda space=head.space: data.training_targets(space))  # type: ignore[misc]
        for _, head, loss in self.module.named_losses() if self.observes else ():
            loss.observe(lambda space=head.space: data.training_targets(space))  # type: ignore[misc]
        resumed = self._resume(last)
        if resumed is None or not (resumed["stopped"] or resumed["epoch"] + 1 >= settings.max_epochs):
            if resumed is not None:
                log.info("%s: going on after epoch %d", folder.name, resumed["epoch"] + 1)
                loader.sampler.set_epoch(resumed["epoch"] + 1)  # Lightning opens the loader before it says the epoch
            with own_randomness(), _quiet():
                shown = Progress(history, monitor=settings.monitor)
                trainer = self._trainer([c for c in (averaged, FreedMemory(), history, shown, keeper) if c is not None])
                try:
                    trainer.fit(self.module, loader, validation, ckpt_path=last if resumed is not None else None,
                                weights_only=True)
                except SystemExit as error:  # Lightning leaves on SIGTERM with code 0, as if all were done
                    raise SystemExit(error.code or 128 + signal.SIGTERM) from error
            self.module.cpu()
        if validation is None or not (folder / "best.ckpt").exists():  # no validation fell into the epochs
            state = read_checkpoint(last)
            write_weights(folder / "best.ckpt", state["state_dict"], epoch=state["epoch"])
        self.load(folder)

    def _trainer(self, callbacks: list[Any]) -> Trainer:
        s = self.settings
        precision: Any = s.precision
        if precision == "16-mixed" and self._device().type == "cpu":
            log.warning("trainer.precision=16-mixed is skipped: this machine has no GPU; 32-true is used")
            precision = "32-true"
        # one process on one device, whatever SLURM_NTASKS of the shell of an allocation says: Lightning would take that
        # for its own processes
        return Trainer(
            max_epochs=s.max_epochs, accelerator=s.accelerator, devices=1, precision=precision, callbacks=callbacks,
            accumulate_grad_batches=s.accumulate, gradient_clip_val=s.gradient_clip,
            check_val_every_n_epoch=s.check_val_every, plugins=[LightningEnvironment()], num_sanity_val_steps=0,
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)

    def _device(self) -> torch.device:
        """Return where it decodes: what was trained on a GPU is decoded on a machine without one, too."""
        return torch.device("cpu" if self.settings.accelerator == "cpu" else device_of())

    def _resume(self, last: Path) -> dict[str, Any] | None:
        """Return epoch and early stopping of ``last.ckpt``, checked against this model; None where there is none."""
        if not last.exists():
            return None
        state = read_checkpoint(last)
        check_weights(self.module.state_dict(), state["state_dict"], what=f"checkpoint {last}")
        if self.settings.ema is not None and "current_model_state" not in state:
            raise ValueError(f"checkpoint {last}: expected averaged weights (trainer.ema is set), got none. "
                             "Train under another name=....")
        return {"epoch": state["epoch"], "stopped": state["callbacks"]["Checkpoints"]["stopped"]}

    def _check(self, data: Any) -> None:
        for name, head in self.module.named_heads():
            spec = data.target_specs.get(head.space)
            if spec is None:
                raise ValueError(f"head {name!r}: expected targets of space {head.space!r}, got only "
                                 f"{sorted(data.target_specs)}. Embed the stimuli in this space (space=[...]).")
            if head.spec.shape != spec.shape:
                raise ValueError(f"head {name!r}: expected targets of shape {head.spec.shape}, got {spec.shape}. "
                                 "Build the head from the embeddings it is trained on.")

        for subject in data.unseen:  # whether the adapter serves it shows before the training
            items = data.items("test")
            with torch.no_grad():
                self.module.adapter.eval()(data.batch(items[items["subject"] == subject][:1]).signals[subject], None)
            self.module.adapter.train()

    def predict(self, batch: BrainBatch) -> dict[str, np.ndarray]:
        """Return space -> ``(B, *shape)``; see `Decoder.predict`."""
        device = self._device()
        module = self.module.to(device).eval()
        heads = {name: head for name, head in module.named_heads() if head.prediction}
        out = {head.space: np.empty((len(batch), *head.decoded.shape), dtype=np.float32) for head in heads.values()}
        with torch.inference_mode():
            for subject, signals in batch.signals.items():
                places = batch.rows[subject].cpu().numpy()
                for start in range(0, len(signals), CHUNK):
                    x = signals[start:start + CHUNK]
                    part = BrainBatch(signals={subject: x}, rows={subject: torch.arange(len(x))},
                                      stimulus_ids=[""] * len(x))
                    decoded, _ = module(part.to(device))
                    for name, head in heads.items():
                        out[head.space][places[start:start + CHUNK]] = decoded[name].float().cpu().numpy()
        return out

    def learned_spaces(self) -> dict[str, tuple[EmbeddingSpec, Callable[[np.ndarray], np.ndarray]]]:
        """Return the views of spaces that its heads have learned; see `Decoder.learned_spaces`."""
        def view(head: Head) -> Callable[[np.ndarray], np.ndarray]:
            def true(target: np.ndarray) -> np.ndarray:
                with torch.inference_mode():
                    return head.true(torch.from_numpy(np.asarray(target, dtype=np.float32))).numpy()
            return true

        self.module.cpu().eval()
        return {head.space: (head.decoded, view(head)) for _, head in self.module.named_heads()
                if head.prediction and head.decoded is not head.spec}

    def joint_priors(self) -> dict[str, Prior]:
        """Return the priors of the `PriorLoss` of its heads; see `Decoder.joint_priors`."""
        return {head.space: loss.prior for _, head, loss in self.module.named_losses() if loss.prior is not None}

    def n_parameters(self) -> dict[str, int]:
        """Return the sizes of the weights that have a gradient; see `Decoder.n_parameters`."""
        return {name: parameter.numel() for name, parameter in self.module.named_parameters()}

    def slopes(self, batch: BrainBatch, *, space: str, directions: np.ndarray) -> dict[str, np.ndarray]:
        """Return gradients through the network in evaluation mode; see `Decoder.slopes`."""
        device = self._device()
        module, along = self.module.to(device).eval(), torch.from_numpy(directions.reshape(len(directions), -1))
        head = next(name for name, h in module.named_heads() if h.space == space and h.prediction)
        slopes: dict[str, list[np.ndarray]] = {subject: [] for subject in batch.signals}
        for subject, signals in batch.signals.items():
            for start in range(0, len(signals), CHUNK):
                x = signals[start:start + CHUNK].to(device).requires_grad_()
                part = BrainBatch(signals={subject: x}, rows={subject: torch.arange(len(x), device=device)},
                                  stimulus_ids=[""] * len(x))
                rows = batch.rows[subject][start:start + CHUNK].cpu()
                decoded = module(part)[0][head].flatten(1).float()
                slope, = torch.autograd.grad((decoded * along[rows].to(device)).sum(), x)
                slopes[subject].append(slope.cpu().numpy())
        return {subject: np.concatenate(parts) for subject, parts in slopes.items()}

    def save(self, folder: Path) -> None:
        """Write the weights as ``best.ckpt`` into `folder`."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_weights(Path(folder) / "best.ckpt", self.module.state_dict(), **self._facts)

    def load(self, folder: Path, *, file: str = "best.ckpt") -> None:
        """Read ``best.ckpt``, or other weights that the fit left there; see `Decoder.load`."""
        path = Path(folder) / file
        facts = read_checkpoint(path)
        weights = facts.pop("state_dict")
        check_weights(self.module.state_dict(), weights, what=f"checkpoint {path}")
        self.module.load_state_dict(weights)
        self.module.eval()
        self._facts = facts

    def load_epoch(self, folder: Path, epoch: int) -> None:
        """Read the weights that ``trainer.keep_last`` left; see `Decoder.load_epoch`."""
        self.load(folder, file=epoch_file(epoch))

    @classmethod
    def tiny(cls) -> Self:
        """Return a small decoder for subjects "sub-01" (50 voxels) and "sub-02" (40), not yet fitted."""
        from brain2img.adapters.mindbridge import MindBridge
        from brain2img.encoders.residual_mlp import ResidualMLP
        from brain2img.heads.linear import LinearHead

        return cls(adapter=MindBridge.tiny(), encoder=ResidualMLP.tiny(), heads={"tiny": LinearHead.tiny()},
                   training={"max_epochs": 2, "batch_size": 16})


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what Lightning tells at every fit; its warnings come through, but for those that cannot matter here."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in EXPECTED:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

"""The deep decoder: augmentation, subject adapter, encoder and heads, trained end to end."""

from __future__ import annotations

import dataclasses
import logging
import signal
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from brain2img.data.once import KeptTrials
from brain2img.decoders.callbacks import AveragedWeights, Checkpoints, History, Progress, write_weights
from brain2img.decoders.training import (
    TrainingSettings,
    own_randomness,
    read_checkpoint,
    seed_epoch,
)
from brain2img.interfaces import Augmentation, Decoder, Encoder, Head, Prior, SubjectAdapter
from brain2img.layers import check_weights
from brain2img.losses import Loss, PriorLoss
from brain2img.records import BrainBatch, Features

log = logging.getLogger(__name__)

CHUNK = 256
"""Trials that are decoded at once."""


def shared_stimuli(stimulus_ids: list[str], *, device: Any = None) -> Tensor:
    """Return ``(B, B)`` bool, true where two trials show the same stimulus."""
    codes: dict[str, int] = {}
    code = torch.tensor([codes.setdefault(name, len(codes)) for name in stimulus_ids], device=device)
    return code[:, None] == code[None, :]


def retrieval_top1(predicted: Tensor, target: Tensor, stimulus_ids: list[str]) -> float:
    """Return how often a prediction is nearest (cosine) to its own stimulus among all those given; ties count in part.

    Parameters
    ----------
    predicted, target
        ``(n, D)`` decoded and true embeddings.
    stimulus_ids
        n stimulus ids; the gallery holds each once.
    """
    places: dict[str, int] = {}
    truth = torch.tensor([places.setdefault(name, len(places)) for name in stimulus_ids])
    first = torch.tensor([stimulus_ids.index(name) for name in places])
    scores = F.normalize(predicted, dim=1) @ F.normalize(target[first], dim=1).T
    own = scores.gather(1, truth[:, None])
    return (((scores > own).sum(dim=1) == 0) / (scores == own).sum(dim=1)).double().mean().item()


class DeepModule(LightningModule):
    """The network and one step of its training; see `DeepDecoder` for the parameters."""

    def __init__(self, *, adapter: SubjectAdapter, encoder: Encoder, heads: Mapping[str, Head],
                 augmentation: Augmentation | None, settings: TrainingSettings, seed: int) -> None:
        super().__init__()
        self.adapter, self.encoder, self.heads = adapter, encoder, nn.ModuleDict(heads)
        self.augmentation, self.settings, self.seed = augmentation, settings, seed
        # adapters of known subjects beside a new one (`decoders.adaptation`): in a list, which hides them from torch,
        # so that they are neither trained nor stored
        self.known_adapters: list[SubjectAdapter] = []
        self._generator = torch.Generator()
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._validated: list[tuple[Tensor, Tensor, list[str]]] = []

    def forward(self, batch: BrainBatch) -> tuple[dict[str, Tensor], dict[str, Features]]:
        """Return head -> ``(B, *shape)``, and subject -> the adapter's features."""
        features = {subject: self.adapter(x, subject if subject in self.adapter.specs else None)
                    for subject, x in batch.signals.items()}
        order = torch.argsort(torch.cat([batch.rows[subject] for subject in features]))
        grid = torch.cat([f.grid for f in features.values()])[order]
        tokens = [f.tokens for f in features.values() if f.tokens is not None]
        assert len(tokens) in (0, len(features)), "an adapter gives tokens for all subjects or for none"
        return self._decode(Features(grid, torch.cat(tokens)[order] if tokens else None)), features

    def _decode(self, features: Features) -> dict[str, Tensor]:
        """Return head -> ``(B, *shape)`` for features on the grid."""
        hidden = self.encoder(features)
        done: dict[str, Tensor] = {}
        for name, head in self.named_heads():
            done[name] = head(hidden, done)
        return done

    def named_heads(self) -> list[tuple[str, Head]]:
        """Return names and heads in their order."""
        return [(name, cast(Head, head)) for name, head in self.heads.items()]

    def named_losses(self) -> list[tuple[str, Head, Loss]]:
        """Return ``<head>/<loss>``, head and loss, in their order."""
        return [(f"{name}/{key}", head, cast(Loss, loss)) for name, head in self.named_heads()
                for key, loss in head.losses.items()]

    def _augment(self, batch: BrainBatch) -> tuple[BrainBatch, Tensor | None]:
        """Return the batch with augmented signals, and ``(B, B)`` soft targets where trials were mixed."""
        if self.augmentation is None:
            return batch, None
        signals, soft_targets = {}, None
        for subject, x in batch.signals.items():
            signals[subject], mixed = self.augmentation(x, generator=self._generator)
            if mixed is not None:
                if soft_targets is None:
                    soft_targets = torch.eye(len(batch), device=x.device)
                rows = batch.rows[subject]
                soft_targets[rows[:, None], rows[None, :]] = mixed.to(soft_targets)
        return dataclasses.replace(batch, signals=signals), soft_targets

    def _head_losses(self, outputs: Mapping[str, Tensor], batch: BrainBatch,
                     soft_targets: Tensor | None) -> tuple[dict[str, Tensor], Tensor]:
        """Return the terms by name, unweighted, and their weighted sum."""
        same = shared_stimuli(batch.stimulus_ids, device=self.device)
        terms, total = {}, torch.zeros((), device=self.device)
        with torch.autocast(self.device.type, enabled=False):
            for name, head, loss in self.named_losses():
                if loss.active:
                    value = loss(outputs[name.split("/")[0]], batch.targets[head.space], soft_targets=soft_targets,
                                 same=same)
                    terms[name] = value
                    total = total + loss.weight * value
        return terms, total

    def _synthetic_losses(self, batch: BrainBatch, features: Mapping[str, Features],
                          soft_targets: Tensor | None) -> tuple[dict[str, Tensor], Tensor | float]:
        """Return the terms of the adapter's synthetic trials, which share the targets of real ones, and their sum."""
        made = self.adapter.synthetic_trials(batch, features) if self.adapter.synthetic else None
        if made is None:
            return {}, 0.0
        places = made[1]
        shown = BrainBatch(signals={}, rows={}, stimulus_ids=[batch.stimulus_ids[i] for i in places.tolist()],
                           targets={space: target[places] for space, target in batch.targets.items()})
        terms, total = self._head_losses(self._decode(made[0]), shown, None if soft_targets is None else
                                         soft_targets[places][:, places])
        return {f"synthetic/{name}": value for name, value in terms.items()}, self.adapter.synthetic * total

    def on_train_batch_start(self, batch: BrainBatch, batch_idx: int) -> None:
        """Start every epoch from its own seed, and set what depends on the epoch."""
        if batch_idx == 0:
            self.begin_epoch(self.current_epoch)

    def begin_epoch(self, epoch: int) -> None:
        """Set generators, augmentation and losses as they are in this epoch, whatever happened before.

        Raises
        ------
        ValueError
            If no loss counts in this epoch.
        """
        self._generator = seed_epoch(self.seed, epoch)
        if self.augmentation is not None:
            self.augmentation.begin_epoch(epoch, self.settings.max_epochs)
        for _, _, loss in self.named_losses():
            loss.begin_epoch(epoch, self.settings.max_epochs, generator=self._generator)
        if not any(loss.active for _, _, loss in self.named_losses()):
            raise ValueError(f"losses: expected one that counts in epoch {epoch + 1} of {self.settings.max_epochs}, "
                             "got none. Correct start and stop in the YAML of the heads.")

    def training_step(self, batch: BrainBatch, batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        batch, soft_targets = self._augment(batch)
        outputs, features = self(batch)
        terms, total = self._head_losses(outputs, batch, soft_targets)
        for name, value in {**self.adapter.auxiliary_losses(batch, features), **self._paired_losses(batch)}.items():
            terms[f"adapter/{name}"] = value
            total = total + value
        synthetic, more = self._synthetic_losses(batch, features, soft_targets)
        terms, total = {**terms, **synthetic}, total + more
        self._note("train", {**terms, "loss": total}, len(batch))
        return total

    def _paired_losses(self, batch: BrainBatch) -> dict[str, Tensor]:
        """Return the adapter's losses on trials of known subjects, where a batch brings some (`PairedBatch`)."""
        sources: Mapping[str, Tensor] = getattr(batch, "sources", {})
        losses: dict[str, Tensor] = {}
        for adapter in self.known_adapters:
            adapter.to(self.device)
            with torch.no_grad():
                known = {subject: adapter(x, subject) for subject, x in sources.items()}
            for subject in batch.signals:
                losses |= self.adapter.adaptation_losses(known, subject)
        return losses

    def validation_step(self, batch: BrainBatch, batch_idx: int) -> None:
        """Add one batch of averaged trials to the validation numbers."""
        outputs, _ = self(batch)
        terms, total = self._head_losses(outputs, batch, None)
        self._note("val", {**terms, "loss": total}, len(batch))
        name, head = next((n, h) for n, h in self.named_heads() if h.prediction)
        self._validated.append((outputs[name].flatten(1).float().cpu(), batch.targets[head.space].flatten(1).cpu(),
                                batch.stimulus_ids))

    def _note(self, split: str, values: Mapping[str, Tensor], n: int) -> None:
        for name, value in values.items():
            key = f"{split}/{name}"
            self._sums[key] = self._sums.get(key, 0) + n * value.detach().float()
            self._counts[key] = self._counts.get(key, 0) + n

    def pop_metrics(self) -> dict[str, float]:
        """Return the means since the last call, with ``val/top1`` where there was a validation."""
        row = {name: (value / self._counts[name]).item() for name, value in self._sums.items()}
        if self._validated:
            predicted, target = (torch.cat(parts) for parts in ([v[0] for v in self._validated],
                                                               [v[1] for v in self._validated]))
            row["val/top1"] = retrieval_top1(predicted, target, [name for part in self._validated for name in part[2]])
        self._sums, self._counts, self._validated = {}, {}, []
        return row

    def transfer_batch_to_device(self, batch: BrainBatch, device: torch.device, dataloader_idx: int) -> BrainBatch:
        """Move a ragged batch."""
        return batch.to(device)

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: float | None = None,
                                    gradient_clip_algorithm: str | None = None) -> None:
        """Scale the gradient down to its largest L2 norm; on the CPU one that is shorter is read only, not written."""
        if gradient_clip_val is None:
            return
        trained = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in trained])
        if norm.device.type != "cpu" or not norm + 1e-6 <= gradient_clip_val:  # a norm that is not a number counts
            nn.utils.clip_grads_with_norm_(trained, gradient_clip_val, norm)

    def configure_optimizers(self) -> Any:
        """AdamW without decay of biases, norms and scalars, and a schedule that ticks once per optimizer step."""
        s = self.settings
        trained = {name: p for name, p in self.named_parameters() if p.requires_grad}
        decayed = [p for name, p in trained.items()
                   if p.ndim > 1 or (s.decay_norms and p.ndim == 1 and name.endswith("weight"))]
        kept = {id(p) for p in decayed}
        optimizer = torch.optim.AdamW([
            {"params": decayed, "weight_decay": s.weight_decay},
            {"params": [p for p in trained.values() if id(p) not in kept], "weight_decay": 0.0}],
            lr=s.lr, fused=s.precision != "16-mixed")  # in one pass over memory; in float16 Lightning could not clip
        if s.schedule == "none":
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler: Any = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        if s.schedule == "onecycle":
            # as MindBridge: from lr / 25 up to lr, down to lr / 2500 (MindEye: lr / 25,000)
            scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=s.lr, total_steps=steps,
                                                            pct_start=s.pct_start,
                                                            final_div_factor=s.final_div_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


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
        The `trainer` group: see `brain2img.decoders.training.TrainingSettings`.
    seed
        Seed of the order of trials, of dropout and of augmentation. The initial weights come with the parts.

    Raises
    ------
    ValueError
        If the parts do not fit each other or a setting is impossible.
    """

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
        self.settings, self.seed = TrainingSettings.of(training), seed
        self._facts: dict[str, Any] = {}  # epoch and score of the weights
        self.module = DeepModule(adapter=adapter, encoder=encoder, heads=heads, augmentation=augmentation,
                                 settings=self.settings, seed=seed)

    def fit(self, data: Any, *, folder: Path) -> None:
        """Train on the training split of `data`; see the class and `Decoder.fit`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._check(data)
        settings, last = self.settings, folder / "last.ckpt"
        averaged = AveragedWeights(settings.ema) if settings.ema is not None else None
        history = History(folder / "logs")
        keeper = Checkpoints(folder, settings=settings, history=history, averaged=averaged)
        adapter, once = self.module.adapter, {}
        if adapter.has_fixed_part and self.module.augmentation is None:
            once["kept"] = KeptTrials(data, adapter.once, folder=folder)
        loader = data.train_loader(batch_size=settings.batch_size, seed=self.seed, **once)
        if len(loader) == 0:
            raise ValueError("training: expected at least one training trial, got none. Choose another split.")
        validation = data.eval_loader("val", batch_size=CHUNK) if data.has_validation else None
        if validation is None and settings.patience is not None:
            log.warning("trainer.patience is skipped: this split has no validation trials")
        for _, head, loss in self.module.named_losses():
            loss.observe(lambda space=head.space: data.training_targets(space))
        resumed = self._resume(last)
        if resumed is None or not (resumed["stopped"] or resumed["epoch"] + 1 >= settings.max_epochs):
            if resumed is not None:
                log.info("%s: going on after epoch %d", folder.name, resumed["epoch"] + 1)
                loader.sampler.set_epoch(resumed["epoch"] + 1)  # Lightning opens the loader before it says the epoch
            with own_randomness(), _quiet():
                trainer = self._trainer([c for c in (averaged, history, Progress(history), keeper) if c is not None])
                try:
                    trainer.fit(self.module, loader, validation, ckpt_path=last if resumed is not None else None,
                                weights_only=True)
                except SystemExit as error:  # Lightning leaves on SIGTERM with code 0, as if all were done
                    raise SystemExit(error.code or 128 + signal.SIGTERM) from error
            self.module.cpu()
        if validation is None or not (folder / "best.ckpt").exists():  # no validation fell into the epochs
            state = read_checkpoint(last)
            average = state["callbacks"].get("AveragedWeights", {}).get("average", {})
            write_weights(folder / "best.ckpt", {**state["state_dict"], **average}, epoch=state["epoch"])
        self.load(folder)

    def _trainer(self, callbacks: list[Any]) -> Trainer:
        s = self.settings
        precision: Any = s.precision
        on_cpu = s.accelerator == "cpu" or (s.accelerator == "auto" and not torch.cuda.is_available())
        if precision == "16-mixed" and on_cpu:
            log.warning("trainer.precision=16-mixed is skipped: this machine has no GPU; 32-true is used")
            precision = "32-true"
        return Trainer(
            max_epochs=s.max_epochs, accelerator=s.accelerator, devices=1, precision=precision, callbacks=callbacks,
            accumulate_grad_batches=s.accumulate, gradient_clip_val=s.gradient_clip,
            check_val_every_n_epoch=s.check_val_every, num_sanity_val_steps=0, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)

    def _resume(self, last: Path) -> dict[str, Any] | None:
        """Return epoch and early stopping of ``last.ckpt``, checked against this model; None where there is none."""
        if not last.exists():
            return None
        state = read_checkpoint(last)
        check_weights(self.module.state_dict(), state["state_dict"], what=f"checkpoint {last}")
        if self.settings.ema is not None and "AveragedWeights" not in state["callbacks"]:
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

    def predict(self, batch: BrainBatch) -> dict[str, np.ndarray]:
        """Return space -> ``(B, *shape)``; see `Decoder.predict`."""
        on_gpu = self.settings.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        device = torch.device("cuda" if on_gpu else "cpu")
        module = self.module.to(device).eval()
        heads = {name: head for name, head in module.named_heads() if head.prediction}
        out = {head.space: np.empty((len(batch), *head.spec.shape), dtype=np.float32) for head in heads.values()}
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

    def joint_priors(self) -> dict[str, Prior]:
        """Return the priors of the `PriorLoss` of its heads; see `Decoder.joint_priors`."""
        return {head.space: loss.prior for _, head, loss in self.module.named_losses() if isinstance(loss, PriorLoss)}

    def save(self, folder: Path) -> None:
        """Write the weights as ``best.ckpt`` into `folder`."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_weights(Path(folder) / "best.ckpt", self.module.state_dict(), **self._facts)

    def load(self, folder: Path) -> None:
        """Read ``best.ckpt``; see `Decoder.load`."""
        path = Path(folder) / "best.ckpt"
        facts = read_checkpoint(path)
        weights = facts.pop("state_dict")
        check_weights(self.module.state_dict(), weights, what=f"checkpoint {path}")
        self.module.load_state_dict(weights)
        self.module.eval()
        self._facts = facts

    @classmethod
    def tiny(cls) -> Self:
        """Return a small decoder for subjects "sub-01" (50 voxels) and "sub-02" (40), not yet fitted."""
        from brain2img.adapters.mindbridge import MindBridge
        from brain2img.encoders.residual_mlp import ResidualMLP
        from brain2img.heads.linear import LinearHead

        return cls(adapter=MindBridge.tiny(), encoder=ResidualMLP.tiny(), heads={"tiny": LinearHead.tiny()},
                   training={"max_epochs": 2, "batch_size": 16})


class _quiet:
    """Silence Lightning's advice while it trains; its errors still come through."""

    def __enter__(self) -> None:
        self._levels = {name: logging.getLogger(name).level for name in ("lightning.pytorch", "lightning.fabric")}
        for name in self._levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")

    def __exit__(self, *error: Any) -> None:
        self._warnings.__exit__(*error)
        for name, level in self._levels.items():
            logging.getLogger(name).setLevel(level)

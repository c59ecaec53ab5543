"""The network of the deep decoder and one step of its training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from brain2img.decoders.settings import TrainingSettings, seed_epoch
from brain2img.interfaces import Augmentation, Encoder, Head, SubjectAdapter
from brain2img.losses import Loss
from brain2img.metrics.ranking import RankScore, rank_table, similarity
from brain2img.records import BrainBatch, Features


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
    ranks = rank_table(similarity(predicted.numpy(), target[first].numpy(), kind="cosine"), truth.numpy())
    return float(RankScore.named("top1").values(ranks).mean())


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
        self._validated: dict[str, list[tuple[Tensor, Tensor]]] = {}  # what is ranked -> decoded and true, in chunks
        self._compared: dict[str, list[tuple[Tensor, Tensor]]] = {}  # head with losses between rows -> decoded, target
        self._validated_ids: list[str] = []

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

    def _head_losses(self, outputs: Mapping[str, Tensor], batch: BrainBatch, soft_targets: Tensor | None, *,
                     between_rows: bool | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """Return the terms by name, unweighted, and their weighted sum; see `TrainingSettings.random_balance`.

        With `between_rows` those alone whose `Loss.between_rows` it is.
        """
        same = shared_stimuli(batch.stimulus_ids, device=self.device)
        terms, totals = {}, {part: torch.zeros((), device=self.device) for part in ("prior", "other")}
        with torch.autocast(self.device.type, enabled=False):
            for name, head, loss in self.named_losses():
                if loss.active and between_rows in (None, loss.between_rows):
                    value = loss(outputs[name.split("/")[0]], head.true(batch.targets[head.space]),
                                 soft_targets=soft_targets, same=same)
                    terms[name] = value
                    part = "other" if loss.prior is None else "prior"
                    totals[part] = totals[part] + loss.weight * value
        if self.settings.random_balance and self.training:
            first, second = torch.randn(2, generator=self._generator).softmax(dim=0).tolist()
            return terms, first * totals["prior"] + second * totals["other"]
        return terms, totals["prior"] + totals["other"]

    def _synthetic_losses(self, batch: BrainBatch, features: Mapping[str, Features],
                          soft_targets: Tensor | None) -> tuple[dict[str, Tensor], Tensor | float]:
        """Return the terms of the adapter's synthetic trials, which share the targets of real ones, and their sum."""
        synthetic = self.adapter.synthetic_trials(batch, features) if self.adapter.synthetic else None
        if synthetic is None:
            return {}, 0.0
        places = synthetic[1]
        shown = BrainBatch(signals={}, rows={}, stimulus_ids=[batch.stimulus_ids[i] for i in places.tolist()],
                           targets={space: target[places] for space, target in batch.targets.items()})
        terms, total = self._head_losses(self._decode(synthetic[0]), shown, None if soft_targets is None else
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
        for _, head in self.named_heads():
            head.begin_epoch(epoch, self.settings.max_epochs)
        for _, _, loss in self.named_losses():
            loss.begin_epoch(epoch, self.settings.max_epochs, generator=self._generator)
        if not any(loss.active for _, _, loss in self.named_losses()):
            raise ValueError(f"losses: expected one that counts in epoch {epoch + 1} of {self.settings.max_epochs}, "
                             "got none. Correct start and stop in the YAML of the heads.")

    def training_step(self, batch: BrainBatch, batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        batch, soft_targets = self._augment(batch)
        outputs, features = self(batch)
        auxiliary = self.adapter.auxiliary_losses(batch, features)
        if batch.sources is None:
            terms, total = self._head_losses(outputs, batch, soft_targets)
        else:
            known, known_auxiliary = self._known_features(batch.sources)
            for subject in batch.signals:
                auxiliary |= self.adapter.adaptation_losses(known, subject)
            if self.adapter.known_in_losses:
                n, n_known = len(batch), len(batch.sources)
                outputs, batch = self._joined(outputs, batch, known)
                if soft_targets is not None:  # only the new subject's trials are mixed
                    soft_targets = torch.block_diag(soft_targets, torch.eye(n_known, device=self.device))
                auxiliary |= {name: (n * auxiliary[name] + n_known * value) / (n + n_known)
                              for name, value in known_auxiliary.items() if name in auxiliary}
            terms, total = self._head_losses(outputs, batch, soft_targets)
        for name, value in auxiliary.items():
            terms[f"adapter/{name}"] = value
            total = total + value
        synthetic, more = self._synthetic_losses(batch, features, soft_targets)
        terms, total = {**terms, **synthetic}, total + more
        self._note("train", {**terms, "loss": total}, len(batch))
        return total

    def _known_features(self, batch: BrainBatch) -> tuple[dict[str, Features], dict[str, Tensor]]:
        """Return what the adapter of the trained decoder makes of a known subject's trials, and its losses there."""
        features, losses = {}, {}
        for adapter in self.known_adapters:
            adapter.to(self.device)
            with torch.no_grad():
                features = {subject: adapter(x, subject) for subject, x in batch.signals.items()}
                losses = adapter.auxiliary_losses(batch, features)
        return features, losses

    def _joined(self, outputs: dict[str, Tensor], batch: BrainBatch, known: Mapping[str, Features]
                ) -> tuple[dict[str, Tensor], BrainBatch]:
        """Return what was decoded, and stimuli and targets, with those of the known subject's trials behind."""
        assert batch.sources is not None
        (subject, features), = known.items()
        order = torch.argsort(batch.sources.rows[subject])
        decoded = self._decode(Features(features.grid[order],
                                        None if features.tokens is None else features.tokens[order]))
        return ({name: torch.cat([value, decoded[name]]) for name, value in outputs.items()}, dataclasses.replace(
            batch, stimulus_ids=batch.stimulus_ids + batch.sources.stimulus_ids,
            targets={space: torch.cat([x, batch.sources.targets[space]]) for space, x in batch.targets.items()}))

    def validation_step(self, batch: BrainBatch, batch_idx: int) -> None:
        """Add one chunk of averaged trials to the validation numbers; after the last, what compares all of them."""
        outputs, _ = self(batch)
        terms, total = self._head_losses(outputs, batch, None, between_rows=False)
        self._note("val", {**terms, "loss": total}, len(batch))
        self._validated_ids += batch.stimulus_ids
        for key, (name, head) in self._ranked_heads().items():
            self._validated.setdefault(key, []).append((
                outputs[name].flatten(1).float().cpu(), head.true(batch.targets[head.space]).flatten(1).float().cpu()))
        for name in {name.split("/")[0] for name, _, loss in self.named_losses() if loss.active and loss.between_rows}:
            target = batch.targets[cast(Head, self.heads[name]).space]
            self._compared.setdefault(name, []).append((outputs[name].float().cpu(), target.cpu()))
        # here and not when validation ends: then averaged weights have been taken out again
        if self._compared and batch_idx + 1 == self.trainer.num_val_batches[0]:
            self._compare_validated()

    def _compare_validated(self) -> None:
        """Add the losses between rows, over all trials of the validation."""
        outputs, targets = {}, {}
        for name, parts in self._compared.items():
            space = cast(Head, self.heads[name]).space
            outputs[name], targets[space] = (torch.cat([part[i] for part in parts]).to(self.device) for i in (0, 1))
        whole = BrainBatch(signals={}, rows={}, stimulus_ids=self._validated_ids, targets=targets)
        terms, total = self._head_losses(outputs, whole, None, between_rows=True)
        n = len(self._validated_ids)
        self._note("val", terms, n)
        self._sums["val/loss"] = self._sums["val/loss"] + n * total.detach().float()  # n rows are counted already

    def _ranked_heads(self) -> dict[str, tuple[str, Head]]:
        """Return name in the log -> head whose retrieval is validated: the first prediction, and what is monitored."""
        heads = {"val/top1": next((name, head) for name, head in self.named_heads() if head.prediction)}
        return heads | {key: (name, head) for name, head in self.named_heads()
                        if (key := f"val/{name}/top1") == self.settings.monitor}

    def _note(self, split: str, values: Mapping[str, Tensor], n: int) -> None:
        for name, value in values.items():
            key = f"{split}/{name}"
            self._sums[key] = self._sums.get(key, 0) + n * value.detach().float()
            self._counts[key] = self._counts.get(key, 0) + n

    def pop_metrics(self) -> dict[str, float]:
        """Return the means since the last call, with ``val/top1`` where there was a validation."""
        row = {name: (value / self._counts[name]).item() for name, value in self._sums.items()}
        for key, parts in self._validated.items():
            predicted, target = (torch.cat([part[i] for part in parts]) for i in (0, 1))
            row[key] = retrieval_top1(predicted, target, self._validated_ids)
        self._sums, self._counts, self._validated, self._compared, self._validated_ids = {}, {}, {}, {}, []
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
        """Return the optimizer, and a schedule that ticks once per optimizer step."""
        s = self.settings
        optimizer = s.optimizer_of(self)
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

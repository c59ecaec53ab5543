"""What happens around the training loop: averaged weights, checkpoints, logs, progress.

Everything that shapes the weights is either in ``last.ckpt`` or a pure function of seed and epoch, so that a fit that
was killed and started again ends with the same bits.
"""

from __future__ import annotations

import csv
import io
import logging
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from brain2img.artifacts import writing
from brain2img.decoders.settings import TrainingSettings, epoch_file
from brain2img.memory import stay_within_bounds
from brain2img.schedule import moving_average

log = logging.getLogger(__name__)

LOG_EVERY = 10.0
"""Least time between two progress lines where there is no terminal (s)."""


def write_weights(path: Path, weights: dict[str, Tensor], **facts: Any) -> None:
    """Write weights and facts atomically."""
    buffer = io.BytesIO()  # torch hides a full disk behind a RuntimeError when it writes the file itself
    torch.save({"state_dict": {k: v.detach().cpu() for k, v in weights.items()}, **facts}, buffer)
    with writing(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


class AveragedWeights(WeightAveraging):
    """Moving average of weights and running statistics, used for validation and kept as the result.

    A checkpoint holds the average as ``state_dict`` and the weights as ``current_model_state``.

    Parameters
    ----------
    decay
        See `brain2img.schedule.moving_average`.
    device
        Where it is kept: where the model is trained.
    """

    def __init__(self, decay: float, *, device: torch.device) -> None:
        super().__init__(device=device, multi_avg_fn=moving_average(decay))

    def weights(self) -> dict[str, Tensor]:
        """Return the average."""
        assert self._average_model is not None, "training has not begun"
        return self._average_model.module.state_dict()


class FreedMemory(Callback):
    """Sees that freed memory which is kept for the next step stays within bounds: `brain2img.memory`."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:
        """Look now and then."""
        if batch_idx % 10 == 0:
            stay_within_bounds()


class History(Callback):
    """One row of numbers per epoch: ``metrics.csv`` and TensorBoard.

    The rows travel in the checkpoint and the file is written anew from them, so that it is whole and without
    duplicates however often the fit was interrupted.

    Parameters
    ----------
    folder
        Where the logs go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[dict[str, float]] = []
        self._writer: Any = None
        self._started = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open TensorBoard's file; what an interrupted epoch logged there is hidden."""
        from torch.utils.tensorboard import SummaryWriter

        self.folder.mkdir(parents=True, exist_ok=True)
        self._writer = SummaryWriter(str(self.folder), purge_step=len(self.rows) or None)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Add the epoch's row.

        Raises
        ------
        ValueError
            If the training loss is not a number any more.
        """
        row = {"epoch": trainer.current_epoch, **pl_module.pop_metrics()}
        row["lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        row["seconds"] = round(time.monotonic() - self._started, 3)
        if not math.isfinite(row["train/loss"]):
            raise ValueError(f"training: expected a finite loss in epoch {trainer.current_epoch}, got "
                             f"{row['train/loss']}. Lower trainer.lr, set trainer.gradient_clip, or use "
                             "trainer.precision=32-true.")
        self.rows.append(row)
        names = list(dict.fromkeys(name for r in self.rows for name in r))
        with writing(self.folder / "metrics.csv") as temporary, temporary.open("w", newline="") as file:
            table = csv.DictWriter(file, names, restval="")
            table.writeheader()
            table.writerows(self.rows)
        for name, value in row.items():
            if name != "epoch":
                self._writer.add_scalar(name, value, trainer.current_epoch)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close TensorBoard's file."""
        if self._writer is not None:
            self._writer.close()

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `state_dict` returned."""
        self.rows = state_dict["rows"]


class Progress(Callback):
    """Epoch, losses, top-1 and time left: a bar on a terminal, else a log line now and then.

    Parameters
    ----------
    history
        Where the numbers stand.
    monitor
        What chooses the weights: its top-1 is told where it is one of a head, else that of the first head.
    """

    def __init__(self, history: History, *, monitor: str) -> None:
        self.history = history
        self.top1 = monitor if monitor.endswith("/top1") else "val/top1"
        self._bar: Any = None
        self._task: Any = None
        self._begun = self._last = time.monotonic()
        self._first_epoch = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar where there is a terminal."""
        self._begun, self._first_epoch = time.monotonic(), trainer.current_epoch
        self._last = self._begun
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(),
                                 console=Console(stderr=True), transient=True)
            n = int(trainer.num_training_batches)
            self._task = self._bar.add_task(f"epoch {self._first_epoch + 1}", total=n * (trainer.max_epochs or 0),
                                            completed=n * self._first_epoch)
            self._bar.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Advance the bar."""
        if self._bar is not None:
            self._bar.advance(self._task)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the epoch's numbers."""
        row, now = self.history.rows[-1], time.monotonic()
        done, total = trainer.current_epoch + 1, trainer.max_epochs or 0
        text = f"epoch {done}/{total}  loss {row['train/loss']:.3f}"
        if "val/loss" in row:
            text += f"  val {row['val/loss']:.3f}  top-1 {100 * row.get(self.top1, row['val/top1']):.1f} %"
        if self._bar is not None:
            self._bar.update(self._task, description=text)
        elif now - self._last >= LOG_EVERY or done == total or done == self._first_epoch + 1:
            left = (now - self._begun) / (done - self._first_epoch) * (total - done)
            log.info("%s  %d s left at most", text, math.ceil(left))
            self._last = now

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        self.on_fit_end(trainer, pl_module)


class Checkpoints(Callback):
    """Writes ``best.ckpt`` (weights) and then ``last.ckpt`` (everything), and stops early.

    Where `settings` ask for it, the weights of the last epochs are kept, too. Must stand last in the list of callbacks.
    Killed between the files, the epoch is done again with equal bits.

    Parameters
    ----------
    folder
        Where the files go.
    settings
        What is monitored.
    history
        Where the numbers stand.
    averaged
        Averaged weights to keep in place of the weights, if any.
    """

    def __init__(self, folder: Path, *, settings: TrainingSettings, history: History,
                 averaged: AveragedWeights | None) -> None:
        self.folder, self.settings, self.history, self.averaged = folder, settings, history, averaged
        self.state: dict[str, Any] = {"best": None, "best_epoch": -1, "waited": 0, "stopped": False}

    def weights(self, module: LightningModule) -> dict[str, Tensor]:
        """Return the weights to keep."""
        return module.state_dict() if self.averaged is None else self.averaged.weights()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what is new."""
        row, monitor, state = self.history.rows[-1], self.settings.monitor, self.state
        validated = "val/loss" in row and monitor != "last"
        if validated and monitor not in row:
            known = sorted(k for k in row if k.startswith("val/"))
            raise ValueError(f"trainer.monitor: expected one of {known}, got {monitor!r}. Correct it.")
        if validated:
            sign = 1 if self.settings.larger_is_better else -1
            if math.isfinite(row[monitor]) and (state["best"] is None or sign * row[monitor] > sign * state["best"]):
                state.update(best=row[monitor], best_epoch=trainer.current_epoch, waited=0)
                self.write_best(pl_module)
            else:
                state["waited"] += 1
            state["stopped"] = self.settings.patience is not None and state["waited"] >= self.settings.patience
        if self.settings.keep_last:
            self.keep(pl_module, trainer.current_epoch)
        with writing(self.folder / "last.ckpt") as temporary:
            trainer.save_checkpoint(temporary, weights_only=False)
        if state["stopped"]:
            log.info("stopped after epoch %d: no better %s since epoch %d", trainer.current_epoch + 1, monitor,
                     state["best_epoch"] + 1)
            trainer.should_stop = True

    def write_best(self, module: LightningModule) -> None:
        """Write ``best.ckpt``."""
        facts = {"monitor": self.settings.monitor, "score": self.state["best"], "epoch": self.state["best_epoch"]}
        write_weights(self.folder / "best.ckpt", self.weights(module), **facts)

    def keep(self, module: LightningModule, epoch: int) -> None:
        """Write the weights of an epoch, and remove those that are not among the last any more."""
        path = self.folder / epoch_file(epoch)
        path.parent.mkdir(exist_ok=True)
        write_weights(path, self.weights(module), epoch=epoch)
        (self.folder / epoch_file(epoch - self.settings.keep_last)).unlink(missing_ok=True)

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs."""
        return dict(self.state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `state_dict` returned."""
        self.state = dict(state_dict)

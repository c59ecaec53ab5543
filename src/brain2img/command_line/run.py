"""Runs a stage for a command: on every member of a collection, errors as one message, exit codes."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from contextlib import suppress
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from threadpoolctl import threadpool_limits

from brain2img.artifacts import compare_on_opening, release_all, waiting
from brain2img.command_line.arguments import no_place
from brain2img.command_line.commands import Command
from brain2img.command_line.failures import said
from brain2img.command_line.logs import show_libraries
from brain2img.command_line.resolve import typed
from brain2img.memory import keep_freed

log = logging.getLogger(__name__)


def run(command: Command, cfg: DictConfig) -> None:
    """Run the function of a command on the configuration that Hydra has composed.

    What a user can cause ends with exit code 1 and one message; the traceback is kept in the log folder of the job.
    """
    logs = _log_to(Path(HydraConfig.get().runtime.output_dir))
    # many small products: threads of NumPy's BLAS would wait for each other (measured: ten times slower on two cores);
    # what is large runs in torch, which has threads of its own
    threadpool_limits(1, user_api="blas")
    compare_on_opening(bool(cfg.get("verify", True)))
    try:
        keep_freed(cfg.get("keep_memory", "auto"))
        with waiting(cfg.get("wait", 0)):
            command.load()(typed(cfg, command=command))
    except KeyboardInterrupt:
        log.error("stopped from the keyboard. The same command goes on where it was.")
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        kept = logs.with_name(logs.name.replace("log", "traceback", 1))
        with suppress(OSError):  # a full disk
            kept.write_text(traceback.format_exc())
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise  # the launcher records which job failed, and goes on with the others
        message = said(error, kept=kept)
        if message is not None:
            log.error("%s", message)
        else:
            log.exception("unexpected %s: this is a defect of brain2img, please report it", type(error).__name__)
        sys.exit(1)
    finally:
        release_all()  # of a member that failed, too: the error holds on to what it was doing


class _LogFile(logging.FileHandler):
    """Says once that it cannot write any more, and leaves the rest to the terminal."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Stop writing."""
        logging.getLogger().removeHandler(self)
        log.warning("%s: expected room for the log, got %s. The log ends here; the command goes on.",
                    self.baseFilename, sys.exc_info()[1])


def _log_to(folder: Path) -> Path:
    """Log to the terminal, and with times to ``log.txt`` in the folder of the job; returns the file.

    Where another process logs there, its name says the number of this one.
    """
    terminal, path = logging.StreamHandler(sys.stdout), folder / "log.txt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            path.open("x").close()
        except FileExistsError:
            path = folder / f"log_{os.getpid()}.txt"
        file = _LogFile(path)
    except OSError as error:
        sys.stderr.write(no_place(error) + "\n")
        sys.exit(1)
    terminal.setFormatter(logging.Formatter("%(message)s"))
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    terminal.setLevel(logging.INFO)
    root = logging.getLogger()
    root.handlers = [terminal, file]
    root.setLevel(logging.INFO)
    show_libraries(terminal, file)
    return path

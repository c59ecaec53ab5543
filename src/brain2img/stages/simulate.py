"""A simulated study -> raw files in the layout of a real one."""

from __future__ import annotations

import inspect
import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from brain2img.artifacts import claim, replace_folder
from brain2img.data.prepared import PreparedStudy
from brain2img.interfaces import Study
from brain2img.simulate import NOTE
from brain2img.simulate.nsd import SimulatedNSD
from brain2img.stages.build import build, build_study, defined, plain
from brain2img.stages.quoting import command
from brain2img.stages.workspace import folder_of

log = logging.getLogger(__name__)


def simulate(cfg: DictConfig) -> Path:
    """Write a small study with a known answer as the authors of ``study`` would have published it; returns the folder.

    The folder has its name only when it is whole, and says in ``SIMULATED.txt`` what it is. What it says last is the
    command that runs the pipeline on it.

    Raises
    ------
    ValueError
        If the study refuses its settings, or the folder is there already.
    """
    study, how = build_study(cfg)[0], plain(cfg.simulate)
    form = how["forms"][0] if cfg.study.form == "auto" else cfg.study.form
    raw = Path(cfg.raw).expanduser().resolve() if cfg.raw else folder_of(cfg, "raw", f"{study.name}-{form}")
    with claim(raw), tempfile.TemporaryDirectory(dir=raw.parent, prefix=f".{raw.name}-") as work:
        if raw.exists() and not (cfg.overwrite and (raw / NOTE).exists()):
            cure = ("Use it, or write it again with overwrite=true." if (raw / NOTE).exists() else
                    "Choose another raw=...")
            raise ValueError(f"{raw}: expected a folder that is not there yet, got one. {cure}")
        made = Path(work) / "raw"
        made.mkdir()
        source = _source(build(how["source"], (Study, SimulatedNSD)), Path(work) / "source")
        log.info("write %s as %s", study.name, form)
        _writer(how["writer"]["_target_"])(made, source, form=form)
        (made / NOTE).write_text(f"Simulated by brain2img in the layout of {study.name} ({form}): nobody was "
                                 f"recorded.\nSource: {how['source']}\n")
        replace_folder(raw, made, marks=[NOTE])
    overrides = OmegaConf.merge({"study": {"form": form}}, how["settings"], how.get("of_form", {}).get(form, {}))
    log.info("%s is written. The pipeline on it:\n%s", raw, command(
        "pipeline", experiment="demo", study=study.name, raw=str(raw), **dict(_settings(overrides))))
    return raw


def _writer(target: str) -> Callable[..., None]:
    """Return the function that writes a layout.

    Raises
    ------
    ValueError
        If this names none of `brain2img.simulate`.
    """
    writer = defined(target)
    if not inspect.isfunction(writer) or not target.startswith("brain2img.simulate."):
        raise ValueError(f"simulate.writer: expected a function of brain2img.simulate, got {target!r}. "
                         "Correct it.")
    return writer


def _source(source: Any, folder: Path) -> Any:
    """Return what the writer takes: a prepared study, or a simulated data set that is no study of ours as it is."""
    if not isinstance(source, Study):
        return source
    folder.mkdir()
    source.prepare(None, folder)
    return PreparedStudy(folder, finished=False)


def _settings(settings: Any, *, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield name and value of settings, for `command`."""
    for key, value in settings.items():
        if OmegaConf.is_dict(value):
            yield from _settings(value, prefix=f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", plain(value)

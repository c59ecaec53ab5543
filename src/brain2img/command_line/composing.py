"""What stands between a command line and Hydra: overrides that Hydra reads as they were meant, and a guard.

Hydra obeys ``hydra.*`` of a composed configuration before any stage begins: it builds callbacks, launcher and sweeper,
sets up logging from class names, and sets environment variables. An experiment is an untrusted file, so that these
settings are only those of ``configs/`` itself and of what the user typed. Hydra has no door for such a check between
composing and obeying; therefore the one method that all its ways go through is wrapped.
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from brain2img.artifacts import differences
from brain2img.stages.quoting import argument

TARGETS = (
    "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher",
    "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher")
"""What Hydra may build, whoever asks for it."""
_SHOWN = ("runtime", "overrides")  # what Hydra writes down of a command, not settings
_STREAMS = ("ext://sys.stdout", "ext://sys.stderr")


class RefusedError(ValueError):
    """A command line or configuration that cannot be obeyed."""


def check_overrides(overrides: Sequence[str], *, sweeps: bool) -> None:
    """Refuse what Hydra's grammar cannot read, and say how to write it.

    Raises
    ------
    RefusedError
        With the argument as a shell takes it; also where several values are given and none may be (not `sweeps`).
    """
    parser = OverridesParser.create()
    for given in overrides:
        key, equals, value = given.partition("=")
        if key.lstrip("+") == "study.raw":
            raise RefusedError(f"study.raw: expected raw files to be given in one way, got {given}. Write "
                               f"{argument('raw', value)}.")
        try:
            if parser.parse_override(given).is_sweep_override() and not sweeps:
                raise RefusedError(f"{key}: expected one value, got several ({value}). A text with "
                                   f"commas: {argument(key, value)}; a list: {shlex.quote(f'{key}=[{value}]')}; one "
                                   "command for each of them: add -m.")
        except HydraException as error:
            if not equals or not key:
                raise RefusedError(f"{given!r}: expected key=value or one of the options of --help, got neither. "
                                   "Correct it; a value with spaces is quoted: 'key=\"a b\"'.") from error
            said = str(error.__cause__ or error).splitlines()[0]
            raise RefusedError(f"{key}: expected a value that Hydra can read, got {value!r} ({said}). Quote it, for "
                               f"the shell and for Hydra: {argument(key, value)}") from error


def guard() -> None:
    """Let Hydra compose nothing whose ``hydra.*`` an untrusted file has set, and nothing without a clear message."""
    if not hasattr(ConfigLoaderImpl.load_configuration, "guarded"):
        setattr(ConfigLoaderImpl, "load_configuration",  # noqa: B010
                _guarded(ConfigLoaderImpl.load_configuration))


def _guarded(load: Callable[..., DictConfig]) -> Callable[..., DictConfig]:
    @functools.wraps(load)
    def load_configuration(self: ConfigLoaderImpl, config_name: str | None, overrides: list[str], run_mode: RunMode,
                           from_shell: bool = True, validate_sweep_overrides: bool = True) -> DictConfig:
        try:
            check_overrides(overrides, sweeps=run_mode == RunMode.MULTIRUN)
            cfg = load(self, config_name, overrides, run_mode, from_shell, validate_sweep_overrides)
            if run_mode != RunMode.MULTIRUN:  # whose jobs are composed one by one
                compose = functools.partial(load, self, config_name, run_mode=run_mode, from_shell=from_shell,
                                            validate_sweep_overrides=validate_sweep_overrides)
                _replace_what_was_chosen_anew(self, cfg, config_name, overrides, compose=compose)
            typed = [o for o in overrides if o.lstrip("+~").startswith(("hydra.", "hydra/", "hydra="))]
            chosen = [] if any(o.startswith("hydra=") for o in typed) else ["+hydra=default"]  # as every root does
            _check(cfg.hydra, load(self, None, [*chosen, *typed], run_mode, from_shell, validate_sweep_overrides).hydra)
        except (HydraException, OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError, RecursionError,
                ValueError) as error:
            message = str(error) if isinstance(error, RefusedError) else said_of(error)
            raise RefusedError(message) from error
        return cfg

    load_configuration.guarded = True  # type: ignore[attr-defined]
    return load_configuration


def _choices_of(loader: ConfigLoaderImpl, config_name: str | None, overrides: list[str]) -> dict[tuple[str, str], str]:
    """Return (package, key) -> the choice that it comes from: "encoder", "_target_" -> "encoder/atm".

    Raises
    ------
    RefusedError
        If two choices of a group would land on one key, where the second would change parts of the first.
    """
    owners: dict[tuple[str, str], str] = {}
    for chosen in loader.compute_defaults_list(config_name, overrides, RunMode.RUN).defaults:
        group, _, choice = (chosen.config_path or "").rpartition("/")
        if not group or not chosen.package or group.startswith("hydra") or (chosen.parent or "").startswith(group):
            continue  # an experiment, which changes what was chosen, or what a choice is based on
        found = loader.repository.load_config(f"{group}/{choice}")
        for key in found.config if found is not None and OmegaConf.is_dict(found.config) else ():
            other = owners.setdefault((chosen.package, str(key)), f"{group}/{choice}").rpartition("/")[2]
            if other != choice:
                raise RefusedError(f"{group}: expected choices with keys of their own, got {other} and {choice}, which "
                                   f"are both {key!r}. Choose one of them.")
    return owners


def _replace_what_was_chosen_anew(loader: ConfigLoaderImpl, cfg: DictConfig, config_name: str | None,
                                  overrides: list[str], *, compose: Callable[..., DictConfig]) -> None:
    """Give what was chosen in the place of an experiment's choice its own settings, not those of what it replaces.

    An experiment sets the sizes of what it chooses: with ``encoder=nice`` those it has for ATM do not count, and with
    ``head=[clip_nice]`` neither those of the heads that are left out.
    """
    typed = {o.lstrip("+").partition("=")[0]: o for o in overrides if not o.startswith("~")}
    owners = _choices_of(loader, config_name, overrides)
    known = {owner.partition("/")[0] for owner in owners.values()}
    groups = {key for key, o in typed.items()
              if key.partition("@")[0] in known and not o.partition("=")[2].startswith("{")}
    if not groups or not any(key.split("@")[0] == "experiment" for key in typed):
        return
    before = _choices_of(loader, config_name, [o for key, o in typed.items() if key not in groups])
    alone = compose([typed[key] for key in groups] + [
        f"++{o.lstrip('+')}" for key, o in typed.items() if any(key.startswith(f"{group}.") for group in groups)])
    for package in {group.partition("@")[2] or group for group in groups} & {package for package, _ in owners}:
        own, node = alone.get(package), cfg.get(package)
        if not (OmegaConf.is_dict(own) and OmegaConf.is_dict(node)):
            continue
        parts = "_target_" not in own and any(OmegaConf.is_dict(value) for value in own.values())
        with open_dict(node):
            if parts:
                for key in list(node):
                    if (package, str(key)) not in owners and "_target_" not in (node[key] or {}):
                        del node[key]
                changed = [key for key in node if (place := (package, str(key))) in owners
                           and owners[place] != before.get(place)]
            else:
                same = {owner for (of, _), owner in owners.items() if of == package} == {
                    owner for (of, _), owner in before.items() if of == package}
                changed = [] if same else [*{*node, *own}]
            for key in changed:
                if key in own:
                    node._set_item_impl(key, own._get_node(key))
                else:
                    del node[key]


def said_of(error: BaseException) -> str:
    """Return what is wrong with a configuration, in words for who typed it."""
    text = str(error).strip()
    if isinstance(error, yaml.YAMLError):
        return f"configuration: expected YAML, got a file that is none ({' '.join(text.split())}). Correct this file."
    if isinstance(error, UnicodeDecodeError):
        return (f"configuration: expected YAML in UTF-8, got bytes that are not ({text}). Save the file as UTF-8, or "
                "remove what is no text (._* files of macOS).")
    if isinstance(error, RecursionError) or "recursive" in text.lower() or "RecursionError" in text:
        return (f"configuration: expected settings that end in values, got some that refer to each other in a circle "
                f"({text.splitlines()[0]}). Correct the ${{...}} in the experiment or the override.")
    if isinstance(error, (ConfigAttributeError, ConfigKeyError)) and getattr(error, "full_key", None):
        return (f"{error.full_key}: expected this setting or choice, got none. Give {error.full_key}=... on the "
                "command line or in the experiment.")
    if isinstance(error, OmegaConfBaseException) or "Interpolation" in text or "nterpolation key" in text:
        return (f"configuration: expected settings that can be resolved, got: {text.splitlines()[0]} "
                f"(in {getattr(error, 'full_key', None) or 'the configuration'}). Correct the setting; --cfg job "
                "prints all of them.")
    if "Config group override must be" in text:  # Hydra does not say which
        return ("command line: expected a choice for every group, got null for one. Leave a group out with ~<group>, "
                "as in ~prior; one that takes several with <group>=[].")
    return f"command line: expected settings of configs/, got: {text}\nCorrect the name; --cfg job prints all settings."


def _check(got: DictConfig, own: DictConfig) -> None:
    """Refuse ``hydra.*`` that no one typed, and what Hydra would build or import of it."""
    settings, base = (_settings(node) for node in (got, own))
    lines = differences(base, settings)
    if lines:
        raise RefusedError("hydra: expected its settings from configs/hydra and the command line alone, got others "
                           "from an experiment or a file of a group:\n  " + "\n  ".join(lines) + "\nThey can run code "
                           "before the stage begins: take them out of that file, or type them as hydra.<key>=<value>.")
    for place, value in _leaves(settings):
        key = place.rpartition(".")[2]
        if key in ("_target_", "()", "class") and value not in TARGETS and not (
                key == "class" and str(value).startswith("logging.")):
            raise RefusedError(f"hydra.{place}: expected one of {', '.join(t.rpartition('.')[2] for t in TARGETS)}, "
                               f"got {value!r}. Leave it out: Hydra would run it before the stage begins.")
        if str(value).startswith(("ext://", "cfg://")) and value not in _STREAMS:
            raise RefusedError(f"hydra.{place}: expected one of {_STREAMS}, got {value!r}. Leave it out.")


def _settings(node: DictConfig) -> dict[str, Any]:
    """Return the settings of Hydra as they are written, without what it notes of a command."""
    found: Any = OmegaConf.to_container(node, resolve=False)
    found["job"] = {k: v for k, v in found["job"].items() if k not in ("override_dirname", "config_name", "name")}
    return {k: v for k, v in found.items() if k not in _SHOWN}


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    if not isinstance(value, (Mapping, list)):
        yield place, value
    for key, inner in items:
        yield from _leaves(inner, f"{place}.{key}" if place else str(key))

"""Builds objects from configuration: the only place where ``_target_`` is followed.

A configuration is an untrusted file: it comes with a run folder, a manifest or an experiment of somebody else. A
``_target_`` counts only where it names a class that is *defined* in this package, not one that a module merely imports,
and that is of the interface asked for; its arguments are plain data. Other packages count beside ours where an
installed distribution declares them (`brain2img.plugins`) or the command line names them (``+trusted=[my_lab]``); no
file can.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from brain2img import plugins
from brain2img.artifacts import EmbeddingCache
from brain2img.data.datamodule import BrainData
from brain2img.data.normalisation import Normalisation
from brain2img.data.prepared import PreparedStudy
from brain2img.data.trials import Split
from brain2img.interfaces import (
    Augmentation,
    Captioner,
    Decoder,
    Encoder,
    Head,
    Metric,
    Prior,
    Reconstructor,
    Space,
    Study,
    SubjectAdapter,
)
from brain2img.losses import Loss
from brain2img.priors.networks import PriorNetwork

PARTS = ("adapter", "encoder", "head", "augmentation", "trainer")
OWN = "brain2img"
NESTED: dict[str, tuple[type, ...]] = {
    "losses": (Loss,), "prior": (Prior,), "network": (PriorNetwork, Space), "space": (Space,), "depth": (Space,),
    "condition": (Captioner,), "start": (Reconstructor,)}
"""Arguments that may hold parts of their own -> what these are."""
_DEFERRED = (PriorNetwork,)  # built by who gets them: ``_partial_: true``
_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_trusted: tuple[str, ...] = ()


def trust(names: Sequence[str]) -> None:
    """Let the packages of these names define parts, too: only what a user typed may come here.

    Raises
    ------
    ValueError
        If one is no name of a package.
    """
    global _trusted
    for name in names:
        if not all(part.isidentifier() for part in str(name).split(".")):
            raise ValueError(f"trusted: expected names of packages of Python, got {name!r}. Correct +trusted=[...].")
    _trusted = tuple(str(name) for name in names)


def plain(config: Any) -> Any:
    """Return a configuration as plain dictionaries and lists, interpolations resolved."""
    return OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config


def defined(target: str) -> Any:
    """Return what is defined under this name in this package, a plug-in, or a package that the user trusts.

    Nothing is imported from elsewhere, and nothing is returned that a module only imports.

    Raises
    ------
    ValueError
        If the name is of another package, names nothing, or names what was defined elsewhere.
    """
    own = target.startswith(f"{OWN}.")
    packages = (OWN, *(() if own else (*plugins.packages(), *_trusted)))
    if not _PATH.fullmatch(target) or not target.startswith(tuple(f"{name}." for name in packages)):
        raise ValueError(f"_target_: expected a class of {' or '.join(f'{name}.*' for name in packages)}, got "
                         f"{target!r}. Choose a part of this package; a plug-in of your own counts with "
                         "+trusted=[<its package>] on the command line, or installed with an entry point "
                         f"{plugins.GROUP}.")
    module_name, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ModuleNotFoundError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and not f"{module_name}.".startswith(f"{error.name}."):
            raise  # it is there, and lacks a library
        raise ValueError(f"_target_: expected a class of this package, got {target!r}, which is none ({error}). "
                         "Correct the YAML or the override.") from error
    if f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}" != target:
        raise ValueError(f"_target_: expected a class that {module_name} defines, got {target!r}, which it has from "
                         "elsewhere. Name a class where it is defined.")
    return found


def as_data(value: Any, *, what: str) -> Any:
    """Return `value` of a manifest, in which every value is resolved: one that OmegaConf would resolve is refused.

    Raises
    ------
    ValueError
        If a text in it is an interpolation (``${oc.env:...}``).
    """
    if isinstance(value, Mapping):
        return {key: as_data(v, what=what) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_data(v, what=what) for v in value]
    if isinstance(value, str) and "${" in value:
        raise ValueError(f"{what}: expected plain values in the manifest, got {value!r}, which would be resolved. "
                         "No stage writes this: do not use the folder.")
    return value


def class_of(config: Mapping[str, Any], kind: type | tuple[type, ...]) -> Any:
    """Return the class that ``_target_`` names, without building it.

    Parameters
    ----------
    config
        Configuration of one part.
    kind
        Interface that the class must implement, or several of which one is enough.

    Raises
    ------
    ValueError
        If there is no ``_target_``, or it names anything else than such a class (`defined`).
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    wanted = " or ".join(k.__name__ for k in kinds)
    if not isinstance(config, Mapping) or not isinstance(config.get("_target_"), str):
        raise ValueError(f"_target_: expected one that names a {wanted}, got {config!r}. Choose a file of the group.")
    found = defined(config["_target_"])
    if not isinstance(found, type) or not issubclass(found, kinds):
        raise ValueError(f"_target_: expected a {wanted}, got {config['_target_']!r}, which is none. "
                         "Choose a part of this group.")
    return found


def build(config: Mapping[str, Any], kind: type | tuple[type, ...], **given: Any) -> Any:
    """Build the part that ``_target_`` names, with `given` beside the configured arguments.

    Parameters
    ----------
    config
        Configuration of one part: ``_target_`` and arguments, of which those of `NESTED` may hold parts in turn.
    kind
        As of `class_of`.
    **given
        Arguments that the configuration does not state.

    Raises
    ------
    ValueError
        If a ``_target_`` is refused (`class_of`), or the arguments do not fit it.
    """
    config = plain(config)
    cls = class_of(config, kind)
    arguments = {key: _argument(value, key, NESTED.get(key, ()), where=config["_target_"])
                 for key, value in config.items() if key != "_target_" and not (key == "_partial_" and _defers(cls))}
    if _defers(cls) and config.get("_partial_"):
        return partial(cls, **arguments, **given)
    try:
        constructor(cls).bind(**arguments, **given)
    except TypeError as error:
        raise ValueError(f"{config['_target_']}: expected arguments that fit the class, got {error}. "
                         "Correct the YAML or the override.") from error
    return cls(**arguments, **given)


def constructor(cls: type) -> inspect.Signature:
    """Return the keyword arguments that a part takes; what its constructor hands on by ``**`` counts, too."""
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if "__init__" in vars(base) and base is not object:
            own = list(inspect.signature(base).parameters.values())
            found = {p.name: p.replace(kind=p.KEYWORD_ONLY) for p in own
                     if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)} | found
            if all(p.kind is not p.VAR_KEYWORD for p in own):
                break
    return inspect.Signature(list(found.values()))


def _defers(cls: type) -> bool:
    return issubclass(cls, _DEFERRED)


def _argument(value: Any, key: str, kinds: tuple[type, ...], *, where: str) -> Any:
    """Return an argument as plain data, parts in it built."""
    if str(key).startswith("_") and str(key).endswith("_"):
        raise ValueError(f"{where}: expected names of arguments, got {key!r}, which no part takes. Leave it out.")
    if isinstance(value, Mapping):
        if "_target_" not in value:
            return {k: _argument(v, k, kinds, where=where) for k, v in value.items()}
        if not kinds:
            raise ValueError(f"{where}: expected plain data in {key!r}, got a part ({value['_target_']!r}). Parts may "
                             f"stand in {', '.join(NESTED)}.")
        return build(value, kinds)
    if isinstance(value, (list, tuple)):
        return [_argument(v, key, kinds, where=where) for v in value]
    return value


def build_study(cfg: DictConfig | Mapping[str, Any]) -> tuple[Study, Path | None, dict[str, Any]]:
    """Return the study, where its raw files are, and its configuration without that path."""
    config = dict(plain(cfg["study"]))
    raw = config.pop("raw", None)
    study = build(config, Study)
    return study, None if raw is None else Path(raw).expanduser(), identity_of_study(config)


def identity_of_study(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a study's configuration shapes the prepared study: not where the files are, nor how fast."""
    return {key: value for key, value in config.items() if key not in ("raw", "jobs")}


def build_spaces(cfg: DictConfig | Mapping[str, Any]) -> dict[str, Space]:
    """Return the chosen spaces by name."""
    return {name: build_space(name, config) for name, config in plain(cfg["space"]).items()}


def build_space(name: str, config: Mapping[str, Any]) -> Space:
    """Return a space, whose name is the key that it was chosen under.

    Raises
    ------
    ValueError
        If it is given another name, or can have none.
    """
    named = "name" in constructor(class_of(config, Space)).parameters and "name" not in config
    space: Space = build({**config, "name": name} if named else config, Space)
    if space.name != name:
        raise ValueError(f"space.{name}: expected its key to be its name, got name={space.name}. Leave name=... out.")
    return space


def build_metrics(cfg: DictConfig | Mapping[str, Any]) -> dict[str, Metric]:
    """Return the chosen metrics by name."""
    return {name: build(config, Metric) for name, config in plain(cfg["metric"]).items()}


def build_reconstructors(cfg: DictConfig | Mapping[str, Any]) -> dict[str, Reconstructor]:
    """Return the chosen reconstructors by name."""
    return {name: build(config, Reconstructor) for name, config in plain(cfg["reconstructor"]).items()}


def build_captioners(cfg: DictConfig | Mapping[str, Any]) -> dict[str, Captioner]:
    """Return the chosen captioners by name."""
    return {name: build(config, Captioner) for name, config in plain(cfg["captioner"]).items()}


def build_data(config: Mapping[str, Any], *, prepared: PreparedStudy, caches: Mapping[str, EmbeddingCache],
               fold: int = 0, split_seed: int | None = None, held_out: Sequence[int] | None = None) -> BrainData:
    """Return the data of one fold from the ``split`` and ``data`` parts of a training configuration.

    `held_out` is (part, number of parts) where a part of the training stimuli is left out, as `Split` says.
    """
    settings = dict(config["data"])
    subjects = settings.pop("subjects", None)
    split = {k: v for k, v in config["split"].items() if k != "n_repeats"}
    if split_seed is not None:
        split["seed"] = split_seed
    if settings.get("window") is not None:
        settings["window"] = tuple(settings["window"])
    if held_out is not None:
        split["held_out"] = (int(held_out[0]), int(held_out[1]))
    return BrainData(prepared, targets=caches, split=Split(**split, fold=fold),
                     normalisation=Normalisation(**settings), subjects=subjects)


def build_prior(cfg: DictConfig | Mapping[str, Any]) -> Prior:
    """Return the prior, not yet fitted; one that is trained begins from the seed of the configuration."""
    config = plain(cfg["prior"])
    wanted = constructor(class_of(config, Prior)).parameters
    return build(config, Prior, **({"seed": cfg["seed"]} if "seed" in wanted and "seed" not in config else {}))


def build_decoder(config: Mapping[str, Any], *, data: BrainData, seed: int) -> Decoder:
    """Return an untrained decoder for these data; parts that its class does not ask for are not built.

    Raises
    ------
    ValueError
        If a head names a space that is not chosen, or a chosen space has no head.
    """
    given: dict[str, Any] = {"seed": seed}
    if not class_of(config["decoder"], Decoder).has_parts:
        given |= {"specs": data.specs, "targets": data.target_specs}
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # initial weights, the same for a fit that is begun again
            given |= _parts(config, data)
    return build(config["decoder"], Decoder, **given)


def _parts(config: Mapping[str, Any], data: BrainData) -> dict[str, Any]:
    """Return the parts of a deep decoder: the encoder states the grid for the adapter and the width for the heads."""
    encoder = build(config["encoder"], Encoder, specs=data.specs)
    heads = {}
    for name, head in config["head"].items():
        if head["space"] not in data.target_specs:
            raise ValueError(f"head {name!r}: expected a space of {sorted(data.target_specs)}, got "
                             f"{head['space']!r}. Add it with space=[...], or leave the head out.")
        heads[name] = build(head, Head, hidden=encoder.hidden, spec=data.target_specs[head["space"]])
    lacking = sorted(set(data.target_specs) - {head["space"] for head in config["head"].values()})
    if lacking:
        raise ValueError(f"head: expected one for every space of {sorted(data.target_specs)}, got none for {lacking}. "
                         "Add one with head=[...], or leave the space out of space=[...].")
    augmentation = config.get("augmentation")
    return {"encoder": encoder, "adapter": build(config["adapter"], SubjectAdapter, specs=data.specs,
                                                 grid=encoder.grid),
            "heads": heads, "augmentation": build(augmentation, Augmentation) if augmentation else None,
            "training": config["trainer"]}

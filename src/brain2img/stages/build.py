"""Builds objects from configuration: the only place where ``_target_`` is followed."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from brain2img.artifacts import EmbeddingCache
from brain2img.data.datamodule import BrainData
from brain2img.data.normalisation import Normalisation
from brain2img.data.prepared import PreparedStudy
from brain2img.data.trials import Split
from brain2img.interfaces import Captioner, Decoder, Metric, Prior, Reconstructor, Space, Study

TRUSTED = ("brain2img.",)
PARTS = ("adapter", "encoder", "head", "augmentation", "trainer")


def plain(config: Any) -> Any:
    """Return a configuration as plain dictionaries and lists, interpolations resolved."""
    return OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config


def class_of(config: Mapping[str, Any]) -> Any:
    """Return what ``_target_`` names, without calling it.

    Raises
    ------
    ValueError
        If a ``_target_`` lies outside this package (a configuration is an untrusted file), or names nothing.
    """
    _trust(config)
    try:
        return get_object(config["_target_"])
    except ImportError as error:
        raise ValueError(f"_target_: expected a class of this package, got {config['_target_']!r}, which cannot be "
                         f"loaded ({str(error).splitlines()[0]}). Correct the YAML or the override.") from error


def build(config: Mapping[str, Any], **given: Any) -> Any:
    """Instantiate what ``_target_`` names, with `given` beside the configured arguments.

    Raises
    ------
    ValueError
        If a ``_target_`` lies outside this package, or does not bind.
    """
    _trust(config)
    try:
        # partial, because instantiate would turn records among the arguments into configuration nodes
        return instantiate(dict(config), _convert_="all", _partial_=True)(**given)
    except hydra.errors.InstantiationException as error:
        if isinstance(error.__cause__, ValueError):
            raise ValueError(str(error.__cause__)) from error
        raise ValueError(f"{config['_target_']}: expected a class that can be built, got "
                         f"{str(error).splitlines()[0]}. Correct the YAML or the override.") from error
    except TypeError as error:
        if "argument" not in str(error):
            raise
        raise ValueError(f"{config['_target_']}: expected arguments that fit the class, got {error}. "
                         "Correct the YAML or the override.") from error


def _trust(config: Mapping[str, Any]) -> None:
    for target in _targets(config):
        if not target.startswith(TRUSTED):
            raise ValueError(f"_target_: expected a class of this package (brain2img.*), got {target!r}. Put the part "
                             "into one file of its group, or extend TRUSTED in stages/build.py.")


def _targets(config: Any) -> list[str]:
    if isinstance(config, Mapping):
        own = [str(config["_target_"])] if "_target_" in config else []
        return own + [t for value in config.values() for t in _targets(value)]
    if isinstance(config, (list, tuple)):
        return [t for value in config for t in _targets(value)]
    return []


def build_study(cfg: DictConfig | Mapping[str, Any]) -> tuple[Study, Path | None, dict[str, Any]]:
    """Return the study, where its raw files are, and its configuration without that path."""
    config = dict(plain(cfg["study"]))
    raw = config.pop("raw", None)
    study = build(config)
    return study, None if raw is None else Path(raw).expanduser(), identity_of_study(config)


def identity_of_study(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a study's configuration shapes the prepared study: not where the files are, nor how fast."""
    return {key: value for key, value in config.items() if key not in ("raw", "jobs")}


def build_spaces(cfg: DictConfig | Mapping[str, Any]) -> dict[str, Space]:
    """Return the chosen spaces by name."""
    return {name: build(config) for name, config in plain(cfg["space"]).items()}


def build_metrics(cfg: DictConfig | Mapping[str, Any]) -> dict[str, Metric]:
    """Return the chosen metrics by name."""
    return {name: build(config) for name, config in plain(cfg["metric"]).items()}


def build_reconstructors(cfg: DictConfig | Mapping[str, Any]) -> dict[str, Reconstructor]:
    """Return the chosen reconstructors by name."""
    return {name: build(config) for name, config in plain(cfg["reconstructor"]).items()}


def build_captioners(cfg: DictConfig | Mapping[str, Any]) -> dict[str, Captioner]:
    """Return the chosen captioners by name."""
    return {name: build(config) for name, config in plain(cfg["captioner"]).items()}


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
    wanted = inspect.signature(class_of(config)).parameters
    return build(config, **({"seed": cfg["seed"]} if "seed" in wanted and "seed" not in config else {}))


def build_decoder(config: Mapping[str, Any], *, data: BrainData, seed: int) -> Decoder:
    """Return an untrained decoder for these data; parts that its class does not ask for are not built.

    Raises
    ------
    ValueError
        If a head names a space that is not chosen, or a chosen space has no head.
    """
    wanted = inspect.signature(class_of(config["decoder"])).parameters
    given: dict[str, Any] = {"seed": seed}
    if "specs" in wanted:
        given |= {"specs": data.specs, "targets": data.target_specs}
    if "heads" in wanted:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # initial weights, the same for a fit that is begun again
            given |= _parts(config, data)
    return build(config["decoder"], **given)


def _parts(config: Mapping[str, Any], data: BrainData) -> dict[str, Any]:
    """Return the parts of a deep decoder: the encoder states the grid for the adapter and the width for the heads."""
    encoder = build(config["encoder"], specs=data.specs)
    heads = {}
    for name, head in config["head"].items():
        if head["space"] not in data.target_specs:
            raise ValueError(f"head {name!r}: expected a space of {sorted(data.target_specs)}, got "
                             f"{head['space']!r}. Add it with space=[...], or leave the head out.")
        heads[name] = build(head, hidden=encoder.hidden, spec=data.target_specs[head["space"]])
    lacking = sorted(set(data.target_specs) - {head["space"] for head in config["head"].values()})
    if lacking:
        raise ValueError(f"head: expected one for every space of {sorted(data.target_specs)}, got none for {lacking}. "
                         "Add one with head=[...], or leave the space out of space=[...].")
    augmentation = config.get("augmentation")
    return {"encoder": encoder, "adapter": build(config["adapter"], specs=data.specs, grid=encoder.grid),
            "heads": heads, "augmentation": build(augmentation) if augmentation else None,
            "training": config["trainer"]}

"""What a command is about: the members of a collection that suit the study, without the parts that do not."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from brain2img.interfaces import Metric, Space, Study
from brain2img.stages.build import build_study, class_of, plain
from brain2img.stages.workspace import adopt_run, given_overrides

log = logging.getLogger(__name__)


def members(cfg: DictConfig) -> list[DictConfig]:
    """Return the configuration of every member of a collection, or `cfg` itself where it is none.

    A collection is an experiment that lists other experiments under ``members``, or under ``by_modality``. Each is
    composed anew with the same command-line overrides and is called ``<name of the collection>/<its own last name>``.
    Of those by modality the ones in ``modalities`` count, or with ``study=...`` on the command line those of its own.
    Parts that need attributes are left out for a study that has none (`suited`).

    Raises
    ------
    ValueError
        If a run is given beside a collection, or no member is for a modality asked for.
    """
    given = given_overrides()
    if not (cfg.get("members") or cfg.get("by_modality")):
        return [suited(adopt_run(cfg, given=given))]
    if cfg.get("run"):
        raise ValueError(f"run: expected one run for one experiment, got run={cfg.run} beside the collection "
                         f"{cfg.name!r}. Leave experiment=... out: the run knows its settings.")
    overrides = [o for o in given if not o.lstrip("+").startswith(("experiment=", "name=", "modalities="))]
    configs = []
    for member in _names(cfg, given=given):
        composed = compose(HydraConfig.get().job.config_name, overrides=[f"experiment={member}", *overrides])
        with open_dict(composed):
            composed.name = f"{collection_name(cfg)}/{member.rsplit('/', 1)[-1]}"
        configs.append(suited(composed))
    return configs


def collection_name(cfg: DictConfig) -> str:
    """Return the name of a collection's folders: with ``study=...`` and no ``name=...`` it says the study, too."""
    given = [o.lstrip("+").partition("=")[0] for o in given_overrides()]
    return f"{cfg.name}_{build_study(cfg)[0].name}" if "study" in given and "name" not in given else str(cfg.name)


def _names(cfg: DictConfig, *, given: Sequence[str]) -> list[str]:
    """Return the names of the members that count."""
    if cfg.get("members"):
        return list(cfg.members)
    known: dict[str, list[str]] = plain(cfg.by_modality)
    wanted: list[str] = plain(cfg.get("modalities")) or list(known)
    if any(o.lstrip("+").startswith("study=") for o in given):
        study = build_study(cfg)[0]
        if any(o.startswith("modalities=") for o in given) and wanted != [study.modality]:
            raise ValueError(f"modalities: expected that of study {study.name} ({study.modality}), got {wanted}. Leave "
                             "modalities=... or study=... out.")
        wanted = [study.modality]
    lacking = sorted(set(wanted) - set(known))
    if lacking:
        raise ValueError(f"experiment {cfg.name!r}: expected modalities of {sorted(known)}, got {lacking}. List "
                         "members for them in its YAML, or choose another experiment.")
    return [name for modality in wanted for name in known[modality]]


def suited(cfg: DictConfig) -> DictConfig:
    """Return `cfg` without the spaces, heads and metrics that need attributes, where the study has none.

    Raises
    ------
    ValueError
        If no space would be left.
    """
    study = build_study(cfg)[0]
    if study.has_attributes:
        return cfg
    left_out = {group: [name for name, part in chosen.items() if class_of(part, kind).needs_attributes]
                for group, kind in (("space", Space), ("metric", Metric)) if (chosen := plain(cfg.get(group)))}
    left_out["head"] = [name for name, part in (plain(cfg.get("head")) or {}).items()
                        if part["space"] in left_out.get("space", ())]
    if not any(left_out.values()):
        return cfg
    return _without(cfg, left_out, study=study)


def _without(cfg: DictConfig, left_out: Mapping[str, list[str]], *, study: Study) -> DictConfig:
    cfg = cfg.copy()
    with open_dict(cfg):
        for group, names in left_out.items():
            for name in names:
                del cfg[group][name]
        if not cfg.space:
            raise ValueError(f"space: expected one that suits study {study.name}, whose stimuli have no attributes, "
                             f"got {left_out['space']}. Choose another with space=[...].")
        if cfg.headline.space in left_out["space"]:
            cfg.headline.space = next(iter(cfg.space))
    log.warning("%s: study %s has no attributes of its stimuli; left out %s", cfg.name, study.name,
                "; ".join(f"{group} {', '.join(names)}" for group, names in left_out.items() if names))
    return cfg

"""From what was asked for to a complete configuration, once for a command.

Hydra composes files and overrides. What it cannot know is added here: the members of a collection, the settings of a
run that is named, parts that a study has no use for, names that follow from others. Everything below takes the result
and asks nothing of Hydra, so that a stage is a function of its configuration, typed or composed in a notebook.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from brain2img.artifacts import differences, safe_name
from brain2img.command_line.arguments import CONFIGS
from brain2img.command_line.commands import COMMANDS, Command
from brain2img.command_line.composing import guard
from brain2img.interfaces import Metric, Space, Study
from brain2img.stages.build import PARTS, as_data, build_study, class_of, identity_of_study, plain, trust
from brain2img.stages.new_subject import adapted_name, runs_without
from brain2img.stages.runs import RunManifest, fold_order, fold_runs
from brain2img.stages.workspace import LATER

log = logging.getLogger(__name__)
REMEMBERED = ("split", "data", "decoder", "seed", "study", *PARTS, *LATER)
"""All that a run can set: not where results go, nor which packages are trusted."""
COLLECTION = ("experiment", "name", "modalities", "members", "by_modality")
"""What is said of a collection and not of its members."""


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Parameters
    ----------
    root
        File of ``configs/`` that the command begins with.
    overrides
        Settings as they were typed.
    experiment
        The chosen experiment, if any.
    folders
        Where configurations lie: ``configs/``, and what was added to it.
    """

    root: str
    overrides: tuple[str, ...]
    experiment: str | None
    folders: tuple[Path, ...]

    @classmethod
    def of(cls, facts: DictConfig | HydraConf) -> Request:
        """Read what Hydra notes of a command, its ``hydra`` node."""
        return cls(str(facts.job.config_name), tuple(facts.overrides.task), facts.runtime.choices.get("experiment"),
                   tuple(Path(s.path) for s in facts.runtime.config_sources if s.schema == "file"))

    def chose(self, key: str) -> bool:
        """Whether this setting was typed as a whole: ``study=...``, not ``study.seed=...``."""
        return key in map(self._key, self.overrides)

    def names(self, *keys: str) -> bool:
        """Whether one of these settings was typed, or a part of one."""
        return any(f"{self._key(o)}.".startswith(f"{key}.") for key in keys for o in self.overrides)

    @property
    def groups(self) -> set[str]:
        """The settings at the top that were typed, or of which a part was."""
        return {self._key(o).split("@")[-1].split(".")[0] for o in self.overrides}

    @staticmethod
    def _key(override: str) -> str:
        return override.lstrip("+~").partition("=")[0]

    def compose(self, *first: str, without: Sequence[str]) -> DictConfig:
        """Return what the same command would compose with the overrides `first` before those that were typed.

        Parameters
        ----------
        *first
            Overrides.
        without
            Settings that are left out of those that were typed.
        """
        kept = [o for o in self.overrides if self._key(o).split(".")[0] not in without]
        return hydra.compose(self.root, overrides=[*first, *kept])


def compose(command: str, *overrides: str) -> DictConfig:
    """Return the complete configuration of a command, as the command line would make it; for use from Python.

    Parameters
    ----------
    command
        One of `brain2img.command_line.commands.COMMANDS`, as "pipeline".
    *overrides
        Settings as they are typed: ``"experiment=demo"``, ``"trainer.max_epochs=5"``.

    Raises
    ------
    ValueError
        For what the command line refuses.
    """
    if command not in COMMANDS:
        raise ValueError(f"command: expected one of {', '.join(COMMANDS)}, got {command!r}. Correct it.")
    guard()
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = hydra.compose(COMMANDS[command].root or command, overrides=list(overrides), return_hydra_config=True)
        request = Request.of(cfg.hydra)
        with open_dict(cfg):
            del cfg["hydra"]
        return complete(cfg, command=COMMANDS[command], request=request)


def call(command: str, *overrides: str) -> Any:
    """Run a command from Python, with settings as they are typed; returns what its function does.

    Raises
    ------
    ValueError
        For what the command line refuses.
    """
    cfg = compose(command, *overrides)
    return COMMANDS[command].load()(cfg)


def typed(cfg: DictConfig, *, command: Command) -> DictConfig:
    """Return the complete configuration of the command that Hydra runs."""
    return complete(cfg, command=command, request=Request.of(HydraConfig.get()))


def complete(cfg: DictConfig, *, command: Command, request: Request) -> DictConfig:
    """Return `cfg` with all that the command's function needs to know.

    Raises
    ------
    ValueError
        If what was asked for does not go together.
    """
    _trust(cfg, request)
    with open_dict(cfg):
        cfg.typed = list(request.overrides)
    cfg = {"experiment": experiment, "adaptation": adaptation, "ablation": ablation, "models": models,
           "study": study_alone, "": as_composed}[command.completed](cfg, request)
    return _with(cfg, name="default") if command.completed and cfg.name is None else cfg


def _trust(cfg: DictConfig, request: Request) -> None:
    """Let the packages of ``+trusted=[...]`` define parts where this was typed; no file can name one."""
    names: list[str] = list(plain(cfg.get("trusted")) or [])
    if names and not request.names("trusted"):
        raise ValueError(f"trusted: expected packages that the command line names, got {names} from an experiment. "
                         "Take it out of that file; if you trust them, type +trusted=[...].")
    trust(names)


def as_composed(cfg: DictConfig, request: Request) -> DictConfig:
    """Return `cfg` as it is."""
    return cfg


def study_alone(cfg: DictConfig, request: Request) -> DictConfig:
    """Return `cfg` for what asks of its study only: of a collection without its members."""
    return _with(cfg, members=None, by_modality=None)


def experiment(cfg: DictConfig, request: Request) -> DictConfig:
    """Return the configuration of an experiment, with what its run remembers, or of a collection with its members.

    A collection is an experiment that lists other experiments under ``members``, or under ``by_modality``. Each is
    composed anew with the same overrides and is called ``<name of the collection>/<its own last name>``. Of those by
    modality the ones in ``modalities`` count, or with ``study=...`` those of its own. Parts that need attributes are
    left out for a study that has none (`suited`).

    Raises
    ------
    ValueError
        If a run is given beside a collection, or no member is for a modality asked for.
    """
    if not (cfg.get("members") or cfg.get("by_modality")):
        return suited(adopt_run(cfg, request=request))
    if cfg.get("run"):
        raise ValueError(f"run: expected one run for one experiment, got run={cfg.run} beside the collection "
                         f"{cfg.name!r}. Leave experiment=... out: the run knows its settings.")
    # with a study of one's own and no name, the name says the study, too
    own = request.chose("study") and not request.chose("name")
    name = f"{cfg.name}_{build_study(cfg)[0].name}" if own else str(cfg.name)
    configs = []
    for member in _members(cfg, request):
        composed = request.compose(f"experiment={member}", without=COLLECTION)
        with open_dict(composed):
            composed.name = f"{name}/{member.rsplit('/', 1)[-1]}"
        configs.append(plain(suited(composed)))
    return _with(cfg, name=name, by_modality=None, members=configs)


def _members(cfg: DictConfig, request: Request) -> list[str]:
    """Return the names of the members that count."""
    if cfg.get("members"):
        return list(cfg.members)
    known: dict[str, list[str]] = plain(cfg.by_modality)
    wanted: list[str] = plain(cfg.get("modalities")) or list(known)
    if request.chose("study"):
        study = build_study(cfg)[0]
        if request.chose("modalities") and wanted != [study.modality]:
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


def adopt_run(cfg: DictConfig, *, request: Request) -> DictConfig:
    """Return `cfg` with the settings that ``run=<dir>`` was made with, except those that were typed.

    Raises
    ------
    ValueError
        If the run is missing, or was trained on another study than ``study=...`` asks for.
    """
    if not cfg.get("run"):
        return cfg
    folder, given = Path(cfg.run).expanduser(), request.groups
    folders = [folder] if folder.name.startswith("fold-") else sorted(folder.glob("fold-*"), key=fold_order)
    if not folders:
        raise ValueError(f"run {folder}: expected folders fold-<k>_seed-<s>, got "
                         f"{'none in it' if folder.exists() else 'nothing'}. Give run=<folder under outputs/train>.")
    manifest = RunManifest.read(folders[0])
    if "study" in given:
        lines = differences(manifest.study, identity_of_study(plain(cfg.study)))
        if lines:
            raise ValueError(f"run {folder}: expected a run of the study asked for, got one of another study or "
                             f"variant ({manifest.study_name}):\n  " + "\n  ".join(lines)
                             + "\nLeave study=... out (the run knows its study), or choose another run.")
    if {"split", "data"} & given:
        raise ValueError(f"run {folder}: expected its own split and data settings, got overrides of them. "
                         "A trained decoder fits the data it was trained on: train another run for other settings.")
    remembered = {**manifest.config, **manifest.later, "study": manifest.study}
    adopted = _with(cfg, **{key: as_data(value, what=f"run {folder}, {key}") for key, value in remembered.items()
                            if key in REMEMBERED and key not in given})
    return adopted if cfg.name is not None else _with(adopted, name=manifest.name)


def adaptation(cfg: DictConfig, request: Request) -> DictConfig:
    """Return the configuration of adapting a run to a new subject: study and training as the run's, where not typed.

    Raises
    ------
    ValueError
        If no run is given.
    """
    if not cfg.get("run"):
        raise ValueError("run: expected a trained run to adapt, got none. Give run=<folder under outputs/train>.")
    manifest = runs_without(cfg.subject, fold_runs(cfg))[0].manifest
    changes: dict[str, Any] = {}
    if not request.names("study", "raw"):
        changes["study"] = as_data(manifest.study, what=f"run {cfg.run}, study")
    if "trainer" in manifest.config:
        changes["trainer"] = changed_trainer(manifest.config["trainer"], plain(cfg.trainer), request)
    if not request.names("label"):
        changes["label"] = f"{manifest.label}_adapted"
    if cfg.name is None:
        changes["name"] = adapted_name(manifest.name, cfg)
    return _with(cfg, **changes)


def changed_trainer(base: Mapping[str, Any], asked: Mapping[str, Any], request: Request) -> dict[str, Any]:
    """Return the trainer of a run with what was typed: ``trainer=<choice>`` changes all of it, ``trainer.lr=`` one."""
    if request.chose("trainer"):
        return dict(asked)
    return {**base, **{key: value for key, value in asked.items() if request.names(f"trainer.{key}")}}


def ablation(cfg: DictConfig, request: Request) -> DictConfig:
    """Return the configuration of an ablation: ``ablation.rows`` has those of every row, one for each seed.

    Raises
    ------
    ValueError
        If there is no experiment, or no row without a part of it.
    """
    settings = plain(cfg.ablation)
    if not request.experiment or not settings.get("without"):
        raise ValueError(f"ablation: expected an experiment and rows without parts of it, got experiment="
                         f"{request.experiment} and {settings}. Choose experiment=... and ablation=<a file of "
                         "configs/ablation>.")
    own, baseline = request.experiment, settings.get("baseline")
    many, few = (range(int(settings[key])) for key in ("n_seeds", "n_seeds_without"))
    rows = [("recipe", str(cfg.label), own, (), many)]
    if baseline:
        rows.append(("baseline", settings.get("baseline_label") or baseline, baseline, (), many))
    rows += [(key, key.replace("_", " "), own, overrides, few) for key, overrides in settings["without"].items()]
    rows += [(key, key.replace("_", " "), other, (), few) for key, other in (settings.get("others") or {}).items()]
    composed = {}
    for key, label, name, overrides, seeds in rows:
        row = request.compose(f"experiment={name}", *overrides,
                              without=("ablation", "experiment", "name", "seed", "overwrite"))
        configs = [_with(row, seed=seed, name=f"{cfg.name}/{safe_name(key)}_seed-{seed}", conditions=["decoded"])
                   for seed in seeds]
        composed[key] = {"label": label, "configs": list(map(plain, configs))}
    return _with(cfg, ablation={**settings, "rows": composed})


def models(cfg: DictConfig, request: Request) -> DictConfig:
    """Return the configuration of a comparison of published models: ``models`` maps their names to their settings."""
    names = plain(cfg.models) or published_experiments(request.folders)
    composed = {name: request.compose(f"experiment={name}", without=("models", "experiment")) for name in names}
    return _with(cfg, models={name: plain(model) for name, model in composed.items() if not model.get("members")})


def published_experiments(folders: Sequence[Path]) -> list[str]:
    """Return the names of all experiments under ``experiment/published`` of these folders."""
    found = sorted(str(path.relative_to(folder / "experiment").with_suffix("")) for folder in folders
                   for path in (folder / "experiment" / "published").rglob("*.yaml"))
    if not found:
        raise ValueError(f"published models: expected experiments in {[str(f / 'published') for f in folders]}, got "
                         "none. Name some with models=[...].")
    return found


def _with(cfg: DictConfig, **changes: Any) -> DictConfig:
    """Return a copy of `cfg` with other settings."""
    changed = cfg.copy()
    with open_dict(changed):
        for key, value in changes.items():
            changed[key] = value
    return changed

"""Scores of several runs -> one table of them side by side."""

from __future__ import annotations

import logging
from pathlib import Path

from omegaconf import DictConfig

from brain2img.analyses.counting import count
from brain2img.artifacts import open_folder, read_manifest, write_table, writing
from brain2img.report.comparison import compare as compared
from brain2img.report.comparison import markdown, table_of, write_comparison
from brain2img.report.reading import Member, Results
from brain2img.stages.build import plain
from brain2img.stages.runs import FoldRun, fold_order
from brain2img.stages.workspace import folder_of, outputs

log = logging.getLogger(__name__)


def compare(cfg: DictConfig) -> Path:
    """Set the runs named in ``runs`` side by side and log the table; returns ``compare/<name>``.

    It holds ``compare.md``, ``compare.csv``, ``compare.parquet``, ``compare.png`` and ``compare.html``.

    Raises
    ------
    ValueError
        If no run is named, one is missing or was not evaluated to its end, or has no headline score.
    """
    root = outputs(cfg)
    named: list[str] = plain(cfg.runs) or []
    if not named:
        raise ValueError("runs: expected folders or names of evaluated runs, got none. Name some with runs=[...].")
    folders = list(dict.fromkeys(scores_folder(str(run), root) for run in named))
    manifests = {str(folder): read_manifest(folder, what="scores") for folder in folders}
    folder = open_folder(folder_of(cfg, "compare", cfg.name), stage="compare", overwrite=True,
                         config={"baseline": cfg.baseline, "seed": cfg.seed, "runs": list(manifests)},
                         inputs={path: manifest["id"] for path, manifest in manifests.items()})
    found = [(results, member) for results in map(Results, folders) for member in results.members]
    parameters = {(str(results.folder), member.experiment): live_parameters(member) for results, member in found}
    groups = compared(found, parameters=parameters, baseline=cfg.baseline, seed=cfg.seed)
    text, table = markdown(groups, baseline=cfg.baseline), table_of(groups)
    write_table(folder.work / "compare.parquet", table)
    for name, content in (("compare.md", text), ("compare.csv", table.to_csv(index=False))):
        with writing(folder.work / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    write_comparison(folder.work, groups, name=cfg.name, baseline=cfg.baseline)
    folder.finish(name=cfg.name)
    log.info("%s\n%s", text, folder.path / "compare.html")
    return folder.path


def scores_folder(run: str, root: Path) -> Path:
    """Return the scores of a run: the folder itself, that of a trained run's name, or one of that name under `root`.

    Raises
    ------
    ValueError
        If there is no such folder, or the run was trained and not evaluated.
    """
    given = Path(run).expanduser()
    if not given.exists():
        given = next((root / stage / run for stage in ("scores", "train") if (root / stage / run).exists()), given)
    if not given.exists():
        raise ValueError(f"runs: expected folders of scores or of trained runs, or names under {root / 'scores'}, got "
                         f"{run!r}. Evaluate it first (brain2img evaluate), or correct the name.")
    given = given.resolve()
    if not any(given.glob("fold-*")):
        return given
    stage = next((parent for parent in given.parents if parent.name == "train"), None)
    scores = None if stage is None else stage.parent / "scores" / given.relative_to(stage)
    if scores is None or not scores.exists():
        raise ValueError(f"run {given}: expected scores of it in {scores or 'outputs/scores'}, got nothing. Evaluate "
                         "it first (brain2img evaluate run=...), or name the scores of its collection.")
    return scores


def live_parameters(member: Member) -> int | None:
    """Return the live parameters of a member's decoder, built on the meta device as it was trained; None if it cannot.

    A run of several folds counts once.
    """
    if member.run is None:
        return None
    folders = sorted(member.run.glob("fold-*"), key=fold_order)
    try:
        fold = FoldRun(folders[0], member.root)
        data = fold.data()
        targets = {name: cache.spec for name, cache in fold.caches(learned=False).items()}
        return count(fold.manifest.config, signals=data.specs, embeddings=targets).live
    except (ValueError, IndexError, KeyError) as error:  # of an older version, or folders that were moved away
        log.warning("%s: its parameters are not counted (%s: %s)", member.experiment, type(error).__name__, error)
        return None

"""The report of an evaluation: one self-contained page made from the scores and the folders they came from."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from brain2img.report.drawing import draw_grid, save_grids
from brain2img.report.figures import (
    Picture,
    image_uri,
    repetitions_figures,
    scores_figure,
    time_course_figures,
    training_figure,
)
from brain2img.report.grid import build_grid
from brain2img.report.made import made_results
from brain2img.report.page import write_page
from brain2img.report.reading import Results
from brain2img.report.recordings import evoked_figure, noise_ceiling_figure, roi_figure
from brain2img.report.regions import regions_figures
from brain2img.report.sentences import main_result, warnings_of, what_was_run
from brain2img.report.style import colours, decoder_label, modality_label
from brain2img.report.tables import difference_table, score_tables
from brain2img.report.volumes import importance_figures


def write_report(folder: Path) -> Path:
    """Write ``report.html`` and ``grid.png`` beside the scores.

    Parameters
    ----------
    folder
        ``outputs/scores/<name>/``, filled by the evaluate stage.

    Returns
    -------
    pathlib.Path
        The page. What the folders of the earlier stages lack is left out of it.

    Raises
    ------
    ValueError
        If ``summary.json`` is missing or names no member.
    """
    results = Results(folder)
    grids = _grids(results)
    studies = [_study(results, study, grid=grids.get(study)) for study in results.studies]
    created = str(results.summary.get("created") or "").replace("T", " ")[:16]
    path = results.folder / "report.html"
    write_page(
        path, "scores.html", title=results.summary.get("name") or results.folder.name,
        subtitle=" · ".join(filter(None, (
            "What was read from recordings of the brain, and what was not", created))),
        studies=studies, warnings=warnings_of(results), seen=any(s["grid"] or s["made"] for s in studies),
        training=_present(training_figure(results, s) for s in results.studies),
        recordings=_recordings(results), time_courses=time_course_figures(results),
        repetitions=repetitions_figures(results),
        voxels=[*regions_figures(results), *importance_figures(results)], differences=difference_table(results),
        baseline=decoder_label(results.baseline), facts=_facts(results),
        colours=colours(results.decoders, baseline=results.baseline))
    return path


def _present(pictures: Any) -> list[Picture]:
    return [picture for picture in pictures if picture is not None]


def _study(results: Results, study: str, *, grid: Picture | None) -> dict[str, Any]:
    main = results.main(study)
    return {"name": study, "modality": modality_label(main.modality), "facts": what_was_run(results, study),
            "grid": grid, "sentences": main_result(results, study), "tables": score_tables(results, study),
            "made": made_results(results, study), "figure": scores_figure(results, study)}


def _grids(results: Results) -> dict[str, Picture]:
    """Draw the grid of every study that has one; all of them together are ``grid.png``."""
    from PIL import Image

    drawn, pictures = [], {}
    for study in results.studies:
        grid = build_grid(results, study)
        if grid is None:
            continue
        image = draw_grid(grid)
        drawn.append(image)
        small = image.resize((image.width * 3 // 4, image.height * 3 // 4), Image.Resampling.LANCZOS)
        pictures[study] = Picture(image_uri(small, kind="WEBP"), f"Grid of stimuli and reconstructions, {study}",
                                  title=study, min_width=820, caption=" ".join([grid.how, *grid.reading]))
    if drawn:
        save_grids(drawn, results.folder / "grid.png")
    return pictures


def _recordings(results: Results) -> list[Picture]:
    pictures: list[Picture] = []
    drawn: set[Path] = set()
    for study in results.studies:
        prepared = next((m.prepared for m in results.members_of(study) if m.prepared is not None), None)
        if prepared is None or prepared.folder in drawn:
            continue
        drawn.add(prepared.folder)
        subjects = [s for s in results.subjects(study) if s in prepared.specs] or prepared.subjects
        pictures += _present(draw(prepared, subjects) for draw in (evoked_figure, roi_figure, noise_ceiling_figure))
    return pictures


def _facts(results: Results) -> dict[str, Any]:
    summary = results.summary
    stages = list(dict.fromkeys(stage for m in results.members for stage in m.seconds))
    seconds = [{"study": m.study, "decoder": decoder_label(m.decoder),
                "stages": [f"{m.seconds[s]:.1f}" if s in m.seconds else "" for s in stages]}
               for m in results.members if m.seconds]
    seeds = [f"{m.study}, {decoder_label(m.decoder)}: {', '.join(map(str, m.seeds()))}"
             for m in results.members if m.seeds()]
    return {"command": shlex.join(map(str, summary.get("command") or [])), "git": summary.get("git") or "",
            "versions": ", ".join(f"{k} {v}" for k, v in (summary.get("versions") or {}).items()),
            "stages": stages, "seconds": seconds, "seeds": seeds, "total": summary.get("seconds"),
            "experiments": ", ".join(dict.fromkeys(m.experiment for m in results.members if m.experiment))}

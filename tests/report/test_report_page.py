"""The page as a whole: self-contained, complete, and without what was not measured."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from fake_outputs import N_TEST, N_TRAIN, WIDTH, FakeOutputs, fmri_spec, rewrite
from PIL import Image

from brain2img.records import SignalSpec
from brain2img.report.scores import write_report


@pytest.fixture(scope="session")
def page(full) -> str:
    return write_report(full[1]).read_text(encoding="utf-8")


def headings(html: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", html)


def no_empty_parts(html: str) -> bool:
    return not re.search(r"</h[23]>\s*</section>|<(p|ul|dl|tbody|figcaption)>\s*</\1>", html)


def test_page_is_one_file_without_outside_references(full, page):
    refs = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", page)
    assert refs
    assert all(ref.startswith("data:image/") for ref in refs)
    assert not re.search(r"https?://|@import|url\(|<script|<link", page)
    assert {p.name for p in full[1].iterdir()} >= {"report.html", "grid.png"}


def test_page_says_everything_in_order(page):
    assert headings(page) == [
        "What was run", "Main result", "What the decoders saw", "Scores", "Against the baseline, ridge",
        "When the image can be read", "How much averaging helps", "The recordings", "Training", "How to get this again"]
    assert no_empty_parts(page)
    text = page.replace("\u00a0", " ")
    assert "MindBridge picks the seen image out of 20 in 43 % of trials" in text
    assert "fMRI of 2 simulated subjects" in text
    assert "EEG of 1 simulated subject" in text
    assert "experiment=demo &#39;study.label=two words&#39;" in text
    assert "abcdef123456" in text
    assert "scenes_fmri, MindBridge: 7" in text  # the seed


def test_pictures_are_large_enough(page, full):
    # two grids, two score figures, two training curves, evoked, regions, noise ceiling, time course, repetitions
    assert page.count("<img ") == 11
    grid = Image.open(full[1] / "grid.png")
    assert grid.width > 1900
    assert np.asarray(grid)[:20].min() == 255  # a white margin


def test_image_only_study_with_repeats(fake: FakeOutputs):
    """Grey 28 x 28 images, ridge alone, two rows per stimulus, image metrics, no logs: as for real digits."""
    spec = SignalSpec(subject="S1", modality="fmri", units="a.u.", n_channels=30, n_times=1)
    prepared = fake.prepare("digits", [spec], size=28, grey=True)
    images = np.repeat(fake.images["digits"][N_TRAIN:, ..., None], 3, axis=-1)
    fake.members.append({
        "experiment": "digits", "study": "digits", "modality": "fmri", "decoder": "ridge", "prepared": prepared,
        "headline": {"space": "pixels", "metric": "ssim", "direction": ""}, "subjects": ["S1"], "run": None,
        "predictions": {"decoded": fake.predict("digits", ["S1"], np.zeros((2 * N_TEST, WIDTH)), space="pixels",
                                                repeats=2)},
        "reconstructions": {"pixels": {"decoded": fake.reconstruct("digits", ["S1"], images)}}})
    values = np.tile(np.linspace(0, 1, N_TEST), 2)
    for metric, value in (("mse", 0.0423), ("pcc", 0.729), ("ssim", 0.451)):
        for subject in ("S1", "mean"):
            fake.record("digits", subject, "ridge", value, metric=metric, space="", direction="", gallery=0,
                        repetitions=1, low=value * 0.9, high=value * 1.1, chance={"mse": 0.09}.get(metric, 0.3))
    fake.scores.append(pd.DataFrame({
        "study": "digits", "subject": "S1", "modality": "fmri", "decoder": "ridge", "condition": "decoded",
        "of": "images", "generator": "pixels", "space": "", "stimulus_id": [f"test-{i}" for i in range(N_TEST)] * 2,
        "metric": "ssim", "direction": "", "gallery": 0, "repetitions": 1, "transductive": False, "circular": False,
        "value": values, "row": np.arange(2 * N_TEST)}))
    html = write_report(fake.write()).read_text(encoding="utf-8")
    assert headings(html) == ["What was run", "Main result", "Before you believe it", "What the decoders saw", "Scores",
                              "How to get this again"]
    assert no_empty_parts(html)
    assert "ridge reaches SSIM 0.451" in html
    assert "0.0423" in html
    assert "MSE ↓" in html
    assert "simulated" not in html
    assert (fake.root / "scores/tiny/grid.png").exists()


def test_scores_alone_are_enough(fake: FakeOutputs):
    """No folder of any other stage, an unknown decoder, and NaN where a score could not be had."""
    fake.members.append({"study": "s", "modality": "meg", "decoder": "new_net", "prepared": "gone",
                         "headline": {"space": "clip", "metric": "top1", "direction": "image_from_brain"},
                         "predictions": {"decoded": "gone"}})
    fake.record("s", "mean", "new_net", 0.3)
    nan = float("nan")
    fake.record("s", "mean", "new_net", nan, metric="ssim", space="", direction="", gallery=None, chance=nan)
    html = write_report(fake.write()).read_text(encoding="utf-8")
    assert headings(html) == ["What was run", "Main result", "Before you believe it", "Scores", "How to get this again"]
    assert no_empty_parts(html)
    assert "new net picks" in html
    assert "nan" not in re.sub(r"data:image\S*", "", html).lower()
    assert not (fake.root / "scores/tiny/grid.png").exists()


def test_names_from_outside_are_escaped(fake: FakeOutputs):
    fake.members.append({"study": "<script>alert(1)</script>", "modality": "eeg", "decoder": "ridge"})
    assert "<script" not in write_report(fake.write()).read_text(encoding="utf-8")


def test_gradiometers_that_share_a_place(fake: FakeOutputs):
    places = fmri_spec("x", fake.rng).ijk[:20] / 500.0
    spec = SignalSpec(subject="m1", modality="meg", units="T/m", n_channels=40, n_times=30, sfreq=50.0, tmin=-0.1,
                      ch_names=tuple(f"G{i}" for i in range(40)), ch_types=("grad",) * 40,
                      positions=np.concatenate([places, places]))
    prepared = fake.prepare("planar_meg", [spec])
    fake.members.append({"study": "planar_meg", "modality": "meg", "decoder": "ridge", "prepared": prepared})
    fake.record("planar_meg", "m1", "ridge", 0.2)
    html = write_report(fake.write()).read_text(encoding="utf-8")
    assert "Mean MEG response" in html


def test_missing_summary_is_explained(tmp_path):
    with pytest.raises(ValueError, match=r"summary\.json: expected a whole .* got nothing there.* Run the evaluate"):
        write_report(tmp_path)


def test_summary_without_members_is_explained(fake: FakeOutputs):
    folder = fake.write()
    rewrite(folder, members=[])
    with pytest.raises(ValueError, match="expected at least one entry under members"):
        write_report(folder)

"""Stimuli that are the same under several ids: noticed by content, and never on both sides of a split."""

from __future__ import annotations

import io
import logging
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw, ImageFont

from brain2img.data.images import StimulusImages
from brain2img.data.prepared import PreparedStudy, PreparedWriter
from brain2img.data.same_stimuli import content
from brain2img.data.trials import Split, grouping
from brain2img.records import SignalSpec
from brain2img.simulate.scenes import ids, render, scene


def photograph(seed, size=256):
    """A picture with structure at every scale, as photographs have it."""
    rng, image = np.random.default_rng(seed), np.zeros((size, size, 3))
    for side in (2, 4, 8, 16, 32, 64):
        part = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        image += np.asarray(part.resize((size, size), Image.Resampling.BICUBIC), dtype=float) / side ** 0.7
    image -= image.min()
    return (image / image.max() * 255).astype(np.uint8)


def jpeg(image, quality):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def resized(image, factor, how=Image.Resampling.LANCZOS):
    height, width = image.shape[:2]
    return np.asarray(Image.fromarray(image).resize((round(width * factor), round(height * factor)), how))


def words(text, size=20):
    image = Image.new("RGB", (400, 400), "white")
    ImageDraw.Draw(image).multiline_text((20, 40), text, fill="black", font=ImageFont.load_default(size), spacing=12)
    return np.asarray(image)


def groups(tmp_path, pictures):
    """Write pictures and return what each is the same as."""
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    table = pd.DataFrame({"stimulus_id": [f"s{i}" for i in range(len(pictures))], **{
        "file": [f"{i}.png" for i in range(len(pictures))], "pointer": None, "kind": "image",
        "captions": [["a cat"]] * len(pictures)}})
    return content(table, StimulusImages(tmp_path, table))["same_as"].tolist()


@pytest.mark.parametrize("copied", [
    lambda image: image, lambda image: jpeg(image, 90), lambda image: jpeg(image, 40),
    lambda image: resized(image, 0.5),
    lambda image: resized(image, 1.3, Image.Resampling.BICUBIC), lambda image: jpeg(resized(image, 2), 75),
    lambda image: np.asarray(Image.fromarray(image).resize((256, 200)))],
    ids=["equal", "q90", "q40", "half", "x1.3", "x2-q75", "other proportions"])
def test_copies_of_a_picture_are_found_compressed_or_resized(tmp_path, copied):
    originals = [photograph(0), photograph(1), render(scene("train-000007"), size=256), photograph(2)]
    found = groups(tmp_path, [*originals, *map(copied, originals)])
    assert found == ["s0", "s1", "s2", "s3"] * 2


def grating(*, angle, contrast=1.0, size=128):
    y, x = np.mgrid[:size, :size]
    wave = np.sin(2 * np.pi * 4 / size * (x * np.cos(np.deg2rad(angle)) + y * np.sin(np.deg2rad(angle))))
    return np.repeat((127.5 + 127 * contrast * wave)[..., None], 3, axis=2).astype(np.uint8)


def test_pictures_that_differ_stay_apart(tmp_path):
    page = "the quick brown fox jumps\nover the lazy dog while\nseven old men talk about\nthe long cold winter"
    pictures = [render(scene(name), size=64) for name in ids("train", 100)]
    pictures += [np.full((32, 32, 3), (level, 100, 100), dtype=np.uint8) for level in range(0, 256, 3)]
    pictures += [grating(angle=angle) for angle in range(0, 180, 2)]
    pictures += [grating(angle=9, contrast=contrast) for contrast in (0.9, 0.8)]
    pictures += [words(word, size) for word in ("house", "mouse", "horse", "cat", "cut", "1", "l") for size in (14, 60)]
    pictures += [words(page), words(page.replace("fox", "fax")), words(page.replace("old", "odd"))]
    pictures += [photograph(0), photograph(0)[:, ::-1], photograph(0)[:200, :200]]
    assert groups(tmp_path, pictures) == [f"s{i}" for i in range(len(pictures))]


def test_copies_of_copies_are_one_and_come_from_any_place(tmp_path):
    first, other = photograph(0), photograph(1)
    table = pd.DataFrame({"stimulus_id": list("abcde"), "kind": "image", "captions": [[]] * 5,
                          "file": ["images.npy", "x.png", "images.npy", None, None],
                          "pointer": [1, None, 0, None, None]})
    np.save(tmp_path / "images.npy", np.stack([first, other]))
    Image.fromarray(first).save(tmp_path / "x.png")
    found = content(table, StimulusImages(tmp_path, table))
    assert found["same_as"].tolist() == ["a", "b", "b", "d", "e"]  # those without a picture are not known by captions
    assert found["content"].tolist()[1] == found["content"].tolist()[2] != found["content"].tolist()[0]
    assert found["content"].tolist()[3:] == ["", ""]


def test_sentences_are_known_by_their_words(tmp_path):
    table = pd.DataFrame({"stimulus_id": list("abcd"), "kind": "sentence", "file": None, "pointer": None,
                          "captions": [["A cat sat."], ["A dog sat."], [" A cat  sat."], []]})
    assert content(table, StimulusImages(tmp_path, table))["same_as"].tolist() == ["a", "b", "a", "d"]


SPLITS = ["train"] * 6 + ["val"] * 2 + ["test"] * 4


def prepared(tmp_path, *, copies, splits=SPLITS):
    """A study of 12 pictures of which `copies` {place: place of its original} are the same."""
    tmp_path.mkdir(exist_ok=True)
    pictures = [photograph(copies.get(i, i), size=32) for i in range(12)]
    table = pd.DataFrame({"stimulus_id": [f"{split}-{i}" for i, split in enumerate(splits)], "kind": "image",
                          "concept": [f"c{i}" for i in range(12)]})
    trials = pd.concat([table[["stimulus_id"]].assign(split=splits, repetition=r) for r in range(2)], ignore_index=True)
    writer = PreparedWriter(tmp_path, study="twice")
    for subject in ("sub-01", "sub-02"):
        writer.add_subject(SignalSpec(subject=subject, modality="fmri", units="a.u.", n_channels=2, n_times=1),
                           trials=trials, signals=[np.random.default_rng(0).standard_normal((24, 2, 1))])
    writer.finish(table, images=np.stack(pictures))
    return PreparedStudy(tmp_path, finished=False)


def split_of(study, **settings):
    assigned = Split(**settings).assign(study.trials, what="study twice", same_as=study.same_as)
    return dict(zip(study.trials["stimulus_id"], assigned, strict=True))


def test_the_log_and_the_table_say_which_are_the_same(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        study = prepared(tmp_path, copies={9: 1})
    assert "study twice: 1 stimuli are others again under another id (1 of them equal, 0 nearly: " in caplog.text
    assert "'test-9' is 'train-1')" in caplog.text
    assert study.same_as["test-9"] == study.same_as["train-1"] == "train-1"
    assert sum(first != stimulus for stimulus, first in study.same_as.items()) == 1
    assert study.trials["split"].tolist() == SPLITS * 4  # the table of trials is left as the study says


def test_a_split_that_divides_a_picture_is_refused_or_its_copies_are_dropped(tmp_path, caplog):
    study = prepared(tmp_path, copies={9: 1, 7: 2, 6: 8, 11: 10, 4: 3})
    with pytest.raises(ValueError, match=r"study twice: expected every stimulus in one split, got 3 in several under "
                                         r"different ids \('train-1' in train is 'test-9' in test\).*duplicates=drop"):
        split_of(study)
    with pytest.raises(ValueError, match=r"got 1 in several .* \('train-2' in train is 'val-7' in val\)\. Results"):
        split_of(prepared(tmp_path / "val", copies={7: 2}))
    assert list(split_of(study, duplicates="keep").values()) == SPLITS
    dropped = split_of(study, duplicates="drop")
    assert {s for s, split in dropped.items() if split == "unused"} == {"train-1", "train-2", "val-6", "test-11"}
    assert dropped["train-3"] == dropped["train-4"] == "train"  # within training, both stay
    with pytest.raises(ValueError, match=r"split.duplicates: expected one of \('refuse', 'drop', 'keep'\), got 'no'"):
        Split(duplicates="no")


def test_folds_and_parts_hold_copies_together(tmp_path):
    copies = {9: 1, 7: 2, 6: 8, 5: 4, 11: 4}
    study = prepared(tmp_path, copies=copies)
    tested = []
    for fold in range(3):
        split = split_of(study, kind="kfold", n_folds=3, fold=fold, val_fraction=0.3, held_out=(0, 2))
        names = list(split)
        assert {"train", "val", "test", "held_out"} <= set(split.values())
        for copy, original in copies.items():
            assert split[names[copy]] == split[names[original]]
        tested += [s for s, where in split.items() if where == "test"]
    assert sorted(tested) == sorted(study.stimulus_table["stimulus_id"])
    unit = grouping(dict.fromkeys(study.same_as, "train"), {}, same_as=study.same_as)
    assert unit["test-9"] == unit["train-1"] == "train-1"


def test_without_copies_folds_are_as_ever(tmp_path):
    study = prepared(tmp_path, copies={})
    plain = Split(kind="kfold", n_folds=3, fold=1, val_fraction=0.3).assign(study.trials, what="x")
    assert list(split_of(study, kind="kfold", n_folds=3, fold=1, val_fraction=0.3).values()) == plain[:12].tolist()


def test_prepare_refuses_and_goes_on_where_it_stopped(command, digits, tmp_path):
    from scipy.io import loadmat

    raw = digits()
    changed = loadmat(raw)
    changed["stimTest"][4] = changed["stimTrn"][7]
    raw = digits(**{name: changed[name] for name in ("stimTest", "stimTrn")})
    arguments = ["study=digit69", f"raw={raw}"]
    code, printed = command("prepare", *arguments)
    assert code == 1
    assert "'train-0007' in train is 'test-0044' in test" in printed
    assert not list((tmp_path / "outputs" / "prepared").rglob("manifest.json"))
    code, printed = command("prepare", *arguments, "split.duplicates=drop")
    assert code == 0, printed
    assert "1 stimuli are left out (split.duplicates=drop)" in printed
    manifest, = (tmp_path / "outputs" / "prepared").rglob("manifest.json")
    split = split_of(PreparedStudy(manifest.parent), duplicates="drop")
    assert [s for s, where in split.items() if where == "unused"] == ["train-0007"]
    assert command("prepare", *arguments, "split.kind=kfold", "split.n_folds=5", "overwrite=true")[0] == 0


@pytest.mark.slow
def test_many_pictures_take_little_time(tmp_path):
    n = 20_000
    rng = np.random.default_rng(0)
    rough = rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    pictures = np.lib.format.open_memmap(tmp_path / "images.npy", mode="w+", dtype=np.uint8, shape=(n, 64, 64, 3))
    for i in range(n):
        pictures[i] = Image.fromarray(rough[i] if i < n - 10 else rough[i - 5000]).resize((64, 64))
    table = pd.DataFrame({"stimulus_id": np.arange(n).astype(str), "kind": "image", "file": "images.npy",
                          "pointer": np.arange(n), "captions": [[]] * n})
    start = time.monotonic()
    found = content(table, StimulusImages(tmp_path, table))
    assert time.monotonic() - start < 120
    copies = found["same_as"] != table["stimulus_id"]
    assert np.flatnonzero(copies).tolist() == list(range(n - 10, n))
    assert found["same_as"][copies].tolist() == [str(i - 5000) for i in range(n - 10, n)]

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from brain2img.simulate.scenes import BACKGROUNDS, COLOURS, KINDS, POOLS, concepts, ids, render, scene


def test_the_world_is_rich_enough():
    assert len(KINDS) >= 40
    assert len(COLOURS) == 10
    assert len(BACKGROUNDS) == 8


def test_concepts_are_divided_once_and_for_all():
    parts = {pool: set(concepts(pool)) for pool in POOLS}
    assert [len(parts[p]) for p in ("test", "val", "train")] == [200, 40, 240]
    assert not parts["test"] & parts["train"]
    assert not parts["val"] & (parts["train"] | parts["test"])
    assert parts["backbone"] == parts["train"]
    assert parts["gallery"] == parts["test"]
    kinds, colours = (Counter(c.split()[i] for c in parts["train"]) for i in (1, 0))
    assert set(kinds) == set(KINDS)
    assert min(kinds.values()) >= 3
    assert set(colours) == set(COLOURS)
    assert min(colours.values()) >= 12


@pytest.mark.parametrize("pool", POOLS)
def test_no_test_concept_is_shown_outside_test_not_even_as_second_object(pool):
    test = set(concepts("test"))
    scenes = [scene(i) for i in ids(pool, 200)]
    assert {s.concept for s in scenes} <= set(concepts(pool))
    seconds = {f"{s.second_colour} {s.second_kind}" for s in scenes if s.second_kind}
    assert seconds
    assert not seconds & test
    if pool not in ("test", "gallery"):
        assert not {s.concept for s in scenes} & test


def test_there_is_one_test_image_of_each_test_concept_with_a_caption_of_its_own():
    scenes = [scene(i) for i in ids("test", 200)]
    assert {s.concept for s in scenes} == set(concepts("test"))
    assert len({s.caption for s in scenes}) == 200


def test_a_gallery_has_as_many_other_pictures_of_each_test_concept():
    other, test = ([scene(i) for i in ids(pool, n)] for pool, n in (("gallery", 600), ("test", 200)))
    assert set(Counter(s.concept for s in other).values()) == {3}
    assert not {str(s.attributes) for s in other} & {str(s.attributes) for s in test}


def test_any_prefix_covers_concepts_evenly():
    counts = Counter(scene(i).concept for i in ids("train", 600))
    assert set(counts) == set(concepts("train"))
    assert max(counts.values()) - min(counts.values()) <= 1


def test_a_scene_is_a_pure_function_of_its_id():
    first = [render(scene(i)).tobytes() for i in ("train-000007", "test-000011")]
    render(scene("val-000003"))
    assert [render(scene(i)).tobytes() for i in ("test-000011", "train-000007")][::-1] == first
    assert len({render(scene(i)).tobytes() for i in ids("train", 50)}) == 50


@pytest.mark.parametrize("size", [64, 128])
def test_pictures_are_rgb_and_lively(size):
    for stimulus in ids("train", 20):
        image = render(scene(stimulus), size=size)
        assert image.shape == (size, size, 3)
        assert image.dtype == np.uint8
        assert image.std() > 15


def test_every_object_shows_on_every_background():
    """The main object changes the picture where it stands, whatever its colour: its outline alone must show."""
    import dataclasses

    base = scene("train-000001")
    for background in BACKGROUNDS:
        bare = dataclasses.replace(base, background=background, second_kind=None, scale=0.02)
        for colour in COLOURS:
            full = dataclasses.replace(bare, colour=colour, scale=0.5)
            changed = np.abs(render(full).astype(int) - render(bare)).max(axis=2) > 40
            assert changed.mean() > 0.05, (background, colour)


def test_captions_name_what_the_attributes_say():
    for stimulus in ids("train", 60):
        shown = scene(stimulus)
        a = shown.attributes
        assert f"{a['size']} {a['colour']} {a['kind']}" in shown.caption
        assert BACKGROUNDS[a["background"]][0] in shown.caption
        assert (a["n_objects"] == "two") == (f"{a['second_colour']} {a['second_kind']}" in shown.caption)
        assert a["x"] - a["scale"] / 2 >= 0
        assert a["x"] + a["scale"] / 2 <= 1


@pytest.mark.parametrize(("stimulus", "message"), [
    ("train-7", "expected <pool>-<six digits>"), ("zebra-000001", "with a pool of train"),
    ("test-000200", "expected test-000000 to test-000199")])
def test_bad_ids_are_refused(stimulus, message):
    with pytest.raises(ValueError, match=message):
        scene(stimulus)


def test_bad_pools_and_sizes_are_refused():
    with pytest.raises(ValueError, match="expected indices from 0 to 199"):
        ids("test", 201)
    with pytest.raises(ValueError, match="pool of stimuli"):
        ids("zebra", 1)
    with pytest.raises(ValueError, match="expected at least 32 pixels"):
        render(scene("train-000001"), size=8)

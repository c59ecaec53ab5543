"""Counts of parameters beside published totals: equal, wrong, dead, missing, without memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from omegaconf import open_dict

from brain2img.analyses.counting import count, embeddings_of, signals_of
from brain2img.analyses.parameters import compare, module_table, table
from brain2img.stages.workspace import training_config

EMBEDDER, BUILDER, TRANSLATOR, IMAGE, TEXT = 18_888_832, 18_907_264, 16_801_792, 404_423_424, 121_169_664
"""Parts of MindBridge, counted by hand from its layers (reference notes, section 2.2.5)."""
VOXELS = {"subj01": 15724, "subj02": 14278, "subj05": 13039, "subj07": 12682}


@pytest.fixture
def compared(composed):
    """Return a function that sets MindBridge at published size beside facts that can be changed."""

    def make(*overrides: str, subjects: int = 1, **facts):
        published = {"model": "M", "parameters": EMBEDDER + TRANSLATOR + IMAGE, "source": "by hand",
                     "voxels": dict(list(VOXELS.items())[:subjects]), "spaces": {"clip": [257, 768]}, **facts}
        cfg = composed("train", "space=[clip_small]", "head=[clip_linear]", *overrides)
        with open_dict(cfg):
            cfg.published = published
        return compare(cfg, name="m")

    return make


ALONE = ("adapter.reconstruction=0", "adapter.cycle=0")


def test_modules_are_counted_as_by_hand(compared):
    one = compared(*ALONE)
    assert one.counts.by_module(one.subjects) == [
        ("adapter.embedder", 1, EMBEDDER), ("encoder", 0, TRANSLATOR), ("heads.clip_linear", 0, IMAGE)]
    many = compared(subjects=4, parameters=4 * (EMBEDDER + BUILDER) + TRANSLATOR + IMAGE)
    assert ("adapter.builder", 4, 4 * BUILDER) in many.counts.by_module(many.subjects)
    for found in (one, many):
        assert found.counts.untraced == ""
        assert found.live == found.counts.total == found.published["parameters"]
        assert found.problems == []
    assert f"| m | adapter.builder (4 subjects) | {4 * BUILDER:,} |" in module_table([one, many])
    assert table([one]).splitlines()[-1] == f"| M | {one.live:,} | 0 | 0 | {one.live:,} | equal | by hand |"


def test_a_wrong_total_is_a_problem_unless_a_reason_is_stated(compared):
    wrong = {"parameters": 1_000_000_000}
    (problem,) = compared(*ALONE, **wrong).problems
    assert problem.startswith("expected 1,000,000,000 parameters, got 440,114,048 (-559,885,952).")
    told = compared(*ALONE, **wrong, reason="counted with the autoencoder")
    assert told.problems == []
    assert told.verdict == "-559,885,952: counted with the autoencoder"
    left_out = compared(*ALONE, parameters=440_114_048 + TEXT, missing={"head for text": TEXT})
    assert (left_out.problems, left_out.verdict) == ([], "equal")
    unknown = compared(*ALONE, parameters=None)
    assert (unknown.problems, unknown.verdict) == ([], "not published")


def test_a_dead_module_is_named_and_does_not_count_as_live(compared):
    # with one subject there is no cycle, so that nothing reaches the builder
    dead = ("adapter.reconstruction=0", "adapter.cycle=1")
    total = EMBEDDER + BUILDER + TRANSLATOR + IMAGE
    problems = compared(*dead, parameters=total - BUILDER).problems
    assert sum("no" not in problem or "none for" in problem for problem in problems) == len(problems) == 4
    assert problems[0].startswith("adapter.builder.subj01.0: expected a gradient in a training step, got none for")
    named = compared(*dead, parameters=total, dead={"adapter.builder": BUILDER})
    assert named.problems == []
    assert named.live == total - BUILDER
    assert f"adapter.builder {BUILDER:,}" in table([named])
    (miscounted,) = compared(*dead, parameters=total - 1, dead={"adapter.builder": BUILDER - 1}).problems
    assert miscounted == f"dead module adapter.builder: expected {BUILDER - 1:,} parameters, got {BUILDER:,}"


def test_what_is_dead_and_not_built_counts_to_the_published_total(compared):
    total = EMBEDDER + TRANSLATOR + IMAGE
    one = compared(*ALONE, parameters=total + 123, dead={"four blocks without effect": 123})
    assert (one.problems, one.live, one.total) == ([], total, total + 123)


def test_the_meta_device_uses_no_memory(composed):
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    config = training_config(composed("train", "space=[clip_small]", "head=[clip_linear]"))
    facts = {"voxels": {f"subj{i}": 15724 for i in range(8)}, "spaces": {"clip": [257, 768]}}
    given = {"signals": signals_of(facts), "embeddings": embeddings_of(facts)}
    count(config, **given)  # whatever is imported at first use
    before = resident()
    counts = count(config, **given)
    assert counts.total == 8 * (EMBEDDER + BUILDER) + TRANSLATOR + IMAGE
    assert resident() - before < 4 * counts.total / 50


def test_ridge_has_coefficients_and_intercepts(composed):
    config = training_config(composed("train", "decoder=ridge", "space=[clip_small]"))
    facts = {"voxels": {"a": 10, "b": 20}, "spaces": {"clip": [3, 4], "clip_text": [5]}}
    assert count(config, signals=signals_of(facts), embeddings=embeddings_of(facts)).live == (11 + 21) * (12 + 5)


def test_an_experiment_without_facts_is_refused(composed):
    with pytest.raises(ValueError, match=r"experiment 'demo': expected `published` with model, parameters, .* got none "
                                         r"of model, parameters"):
        compare(composed("train"), name="demo")


def test_the_command_prints_the_published_rows_and_fails_for_another_size(command):
    code, text = command("parameters", arguments := "models=[published/mindbridge_subj01]")
    assert code == 0, text
    assert "| 561,283,712 | equal |" in text
    linear = "models=[published/brain_diffuser_subj01,published/takagi_depth]"
    code, text = command("parameters", linear)
    assert code == 0, text
    assert "| 5,467,268,000 | equal |" in text
    assert "published/takagi_depth left out: the numbers of voxels of the streams are not in the notes" in text
    code, text = command("parameters", arguments, "encoder.n_blocks=2")
    assert code == 1
    assert "published/mindbridge_subj01: expected 561,283,712 parameters, got 552,882,816 (-8,400,896)." in text


def test_signals_lie_in_a_volume():
    specs = signals_of({"voxels": {"a": 1000, "b": None}, "volume_shape": [10, 20, 30]})
    assert list(specs) == ["a"]
    assert specs["a"].volume_shape == (10, 20, 30)
    assert len({tuple(place) for place in specs["a"].ijk}) == 1000
    assert specs["a"].ijk.max(axis=0).tolist() == [9, 19, 29]


def test_signals_of_m_eeg_have_sensors():
    specs = signals_of({"signals": {"a": [63, 250], "b": None}})
    assert list(specs) == ["a"]
    assert (specs["a"].modality, specs["a"].n_channels, specs["a"].n_times, specs["a"].sfreq) == ("eeg", 63, 250, 250.0)
    assert len(set(specs["a"].ch_names)) == len({tuple(p) for p in specs["a"].positions}) == 63
    recording = {"modality": "meg", "sfreq": 120.0, "tmin": -0.5}
    meg = signals_of({"signals": {"a": [271, 181]}, "recording": recording})["a"]
    assert (meg.modality, meg.units, meg.ch_types[0], meg.tmin, meg.sfreq) == ("meg", "T", "mag", -0.5, 120.0)
    assert np.linalg.norm(meg.positions, axis=1) == pytest.approx(0.09)
    for facts, got in (({}, "none"), ({"voxels": {"a": 3}, "signals": {"a": [3, 4]}}, "both")):
        with pytest.raises(ValueError, match=f"published: expected voxels or signals, got {got}"):
            signals_of(facts)
    with pytest.raises(ValueError, match=r"published.signals of 'a': expected \[channels, samples\], got 63"):
        signals_of({"signals": {"a": 63}})


@pytest.mark.parametrize(("experiment", "live", "total"), [
    ("atm_s_joint", 3_202_413 - 127_250, 3_202_413), ("atm_s_sub08", 3_200_413 - 127_500, 3_200_413),
    ("atm_s_time_sub08", 2_970_202, 3_246_741), ("atm_s_time_joint", 2_970_202, 5_347_989),
    ("atm_s_time_reconstruction_sub08", 3_655_541 - 276_539, 3_655_541),
    ("nice_sub08", 1_802_496, 1_802_496), ("nice_vit_h14_sub08", 2_630_913, 2_630_913)])
def test_eeg_decoders_have_the_published_sizes(composed, experiment, live, total):
    one = compare(composed("train", f"experiment=published/{experiment}"), name=experiment)
    assert (one.live, one.total, one.published["parameters"]) == (live, total, total)
    assert one.problems == []
    assert one.counts.untraced == ""


def test_a_joint_atm_has_a_value_embedding_for_every_subject(composed):
    cfg = composed("train", "experiment=published/atm_s_joint", "adapter.linear=true",
                   "encoder.value_embedding=false", "published.parameters=null")
    assert compare(cfg, name="joint").live == 3_202_413 - 127_250 + 9 * 62_750

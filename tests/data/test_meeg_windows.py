"""Windows and regions by name: the samples and channels that the paper has."""

from __future__ import annotations

import pytest

from brain2img.data.windows import REGIONS, Window, kept, region_channels, sliding
from brain2img.records import SignalSpec

NAMES = tuple(name for channels in REGIONS.values() for name in channels.split())


def signals(names=NAMES, *, tmin=-0.2, n_times=300, modality="eeg"):
    return SignalSpec(subject="sub-01", modality=modality, units="V", n_channels=len(names), n_times=n_times,
                      sfreq=250.0, tmin=tmin, ch_names=tuple(names))


@pytest.mark.parametrize("tmin", [-0.2, 0.0])
def test_growing_windows_have_the_published_samples(tmin):
    ends = [*range(50, 501, 50), *range(600, 1001, 100)]
    found = [Window(0.0, end / 1000).samples(signals(tmin=tmin, n_times=round((1 - tmin) * 250))) for end in ends]
    assert [s.stop - s.start for s in found] == [12, 25, 37, 50, 62, 75, 87, 100, 112, 125, 150, 175, 200, 225, 250]
    assert {s.start for s in found} == {round(-tmin * 250)}


def test_sliding_windows_go_as_far_as_the_epoch():
    found = sliding(signals(), width=0.1, step=0.1, first=0.0)
    assert [w.name for w in found] == [f"{a}-{a + 100}" for a in range(0, 1000, 100)]
    assert [w.samples(signals()).start for w in found] == list(range(50, 300, 25))
    assert sliding(signals(), width=0.1, step=0.02, first=-0.2)[0].samples(signals()) == slice(0, 25)
    assert Window(0.9, 1.004).samples(signals()) is None
    assert Window(-0.3, 0.1).samples(signals()) is None
    with pytest.raises(ValueError, match=r"windows.sliding: expected width and step above 0 s, got 0.1 and 0"):
        sliding(signals(), width=0.1, step=0, first=0.0)


def test_regions_hold_every_channel_once():
    assert {name: len(found) for name, found in region_channels([signals()]).items()} == {
        "frontal": 15, "central": 14, "parietal": 16, "temporal": 10, "occipital": 8}
    assert len(set(NAMES)) == 63
    some = signals(["Oz", "Cz", "O1", "M1"])
    assert region_channels([some]) == {"central": ["Cz"], "occipital": ["Oz", "O1"]}
    assert region_channels([some, signals(["O1", "Cz"])]) == {"central": ["Cz"], "occipital": ["O1"]}
    meg = signals(["MLO11", "MRT12", "MZC01", "BG1"], modality="meg")
    assert region_channels([meg]) == {"central": ["MZC01"], "temporal": ["MRT12"], "occipital": ["MLO11"]}
    with pytest.raises(ValueError, match=r"regions of meg: expected channels named .* got MEG0111"):
        region_channels([signals(["MEG0111"], modality="meg")])


def test_what_is_kept_is_inside_of_both():
    inside = kept(signals(["Oz", "Cz"], n_times=10), samples=slice(2, 5), channels=["Cz"])
    assert inside.sum() == 3
    assert inside[1, 2:5].all()
    assert kept(signals(["Oz", "Cz"])).all()

"""Voxels by region: patterns, sets, and the channels that a decoder then sees."""

import dataclasses

import numpy as np
import pytest

from brain2img.data.normalisation import FittedNormalisation, Normalisation
from brain2img.data.rois import roi_places, roi_sets, voxels_of
from brain2img.records import SignalSpec

SPEC = SignalSpec(subject="s", modality="fmri", units="a.u.", n_channels=6, n_times=1,
                  rois=("V1v", "V2", "V1d", "", "FFA", "V2"), noise_ceiling=np.arange(6) / 10)


@pytest.mark.parametrize(("patterns", "places"), [
    (["V1*"], [0, 2]), (["V2", "FFA"], [1, 4, 5]), (["!V2"], [0, 2, 3, 4]), (["V*", "!V1d"], [0, 1, 5]), ([""], [3])])
def test_patterns_choose_voxels_in_the_order_of_the_file(patterns, places):
    assert roi_places(SPEC, patterns).tolist() == places
    fitted = FittedNormalisation(Normalisation(rois=patterns), spec=SPEC)
    assert fitted.spec.rois == tuple(SPEC.rois[i] for i in places)
    np.testing.assert_array_equal(fitted.spec.noise_ceiling, SPEC.noise_ceiling[places])


def test_sets_alone_and_without():
    sets = {"early": ["V1*", "V2"], "all": None}
    alone, without = (roi_sets({"s": SPEC}, sets, part=part) for part in ("alone", "without"))
    assert voxels_of(SPEC, alone["early"]).tolist() == [0, 1, 2, 5]
    assert voxels_of(SPEC, without["early"]).tolist() == [3, 4]
    assert len(voxels_of(SPEC, without["all"])) == 6
    other = dataclasses.replace(SPEC, subject="t", rois=("V2", "V2", "FFA", "FFA", "PPA", ""))
    assert list(roi_sets({"s": SPEC, "t": other}, None, part="alone")) == ["all", "V2", "FFA"]


def test_messages():
    with pytest.raises(ValueError, match=r"subject 's': expected some of \['V1v', .*got 'V9'"):
        roi_places(SPEC, ["V9"])
    with pytest.raises(ValueError, match=r"expected \['V2', '!V2'\] to leave voxels, got none"):
        roi_places(SPEC, ["V2", "!V2"])
    with pytest.raises(ValueError, match=r"expected a label for every voxel, got none.*study\.voxels=nsdgeneral"):
        FittedNormalisation(Normalisation(rois=["V1"]), spec=dataclasses.replace(SPEC, rois=()))
    with pytest.raises(ValueError, match="expected 'alone' or 'without', got 'both'"):
        roi_sets({"s": SPEC}, None, part="both")
    with pytest.raises(ValueError, match="expected all channels, because the published files are whitened"):
        FittedNormalisation(Normalisation(rois=["V2"]), spec=dataclasses.replace(SPEC, whitened=True))

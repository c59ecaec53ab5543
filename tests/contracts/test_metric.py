"""Every YAML of the group ``metric`` keeps what `brain2img.interfaces.Metric` promises."""

from __future__ import annotations

import pytest
from decoded import decoded_of
from parts import parts
from promises import check_metric

from brain2img.interfaces import Metric
from brain2img.stages.build import build, class_of


@pytest.mark.parametrize(("key", "config"), parts("metric"))
def test_as_built(key, config):
    metric = build(config, Metric)
    check_metric(metric, decoded_of(metric))


@pytest.mark.parametrize("cls", sorted({class_of(p.values[1], Metric) for p in parts("metric")}, key=str))
def test_tiny(cls):
    check_metric(cls.tiny(), decoded_of(cls.tiny()))

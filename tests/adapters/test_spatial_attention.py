"""Spatial attention against a sensor-by-sensor evaluation, MNE's layout, and the published sizes."""

import dataclasses
import math

import mne
import numpy as np
import pytest
import torch

from brain2img.adapters.spatial_attention import SpatialAttention, layout, scaled
from brain2img.records import Grid, SignalSpec


def signals(name="sub-01", *, n=6, n_times=20, positions="drawn", seed=0, **options):
    if isinstance(positions, str):
        positions = np.random.default_rng(seed).uniform(-0.1, 0.1, (n, 3))
    return SignalSpec(subject=name, modality="meg", units="T", n_channels=n, n_times=n_times, sfreq=100.0,
                      ch_names=tuple(f"M{i}" for i in range(n)), positions=positions, **options)


def adapter_of(*specs, F=4, **options):
    torch.manual_seed(0)
    return SpatialAttention(specs={s.subject: s for s in specs}, grid=Grid(F, specs[0].n_times),
                            **{"n_virtual": 5, "width": 18, **options})


def scores_by_hand(places, heads, n_dims, n):
    """Every sensor and virtual channel on its own; the order of frequencies is that of loops over k, l (and m)."""
    out = torch.zeros(len(heads), len(places), dtype=torch.float64)
    for c, place in enumerate(places):
        phases = [sum(k * (p + 0.2) for k, p in zip(ks, place, strict=True)) * 2 * math.pi / 1.4
                  for ks in np.ndindex(*(n,) * n_dims)]
        embedding = torch.tensor([math.cos(p) for p in phases] + [math.sin(p) for p in phases], dtype=torch.float64)
        out[:, c] = heads.double() @ embedding
    return out


@pytest.mark.parametrize(("n_dims", "width", "options"), [
    (2, 18, {}), (3, 16, {"bias": True}), (2, 18, {"subject_layers": False}),
    (2, 18, {"initial": False, "n_virtual": 4, "bias": True})])
def test_equals_sensor_by_sensor_evaluation(n_dims, width, options):
    specs = [signals(), signals("sub-02", n=9, seed=1)]
    adapter = adapter_of(*specs, n_dims=n_dims, width=width, **options).eval()
    for spec in specs:
        places = layout(spec.positions) if n_dims == 2 else spec.positions
        places = (places - places.min(axis=0)) / (places.max(axis=0) - places.min(axis=0))
        scores = scores_by_hand(places, adapter.heads.detach(), n_dims, adapter.n_frequencies)
        weights = torch.exp(scores) / torch.exp(scores).sum(dim=1, keepdim=True)
        torch.testing.assert_close(adapter.attention(spec.subject).double(), weights, atol=1e-5, rtol=1e-4)
        x = torch.randn(3, spec.n_channels, 20)
        y = weights @ x.double()
        if adapter.initial_linear is not None:
            conv = adapter.initial_linear[0]
            y = conv.weight[..., 0].double() @ y + conv.bias.double()[:, None]
        if adapter.subject_layers:
            y = torch.einsum("bct,cd->bdt", y, adapter.matrices[spec.subject].double())
        if options.get("bias"):
            y = y + adapter.biases[spec.subject].double()[:, None]
        got = adapter(x, spec.subject)
        assert got.tokens is None
        torch.testing.assert_close(got.grid, y.float(), atol=1e-5, rtol=1e-5)


def test_layout_is_that_of_mne_for_eeg():
    montage = mne.channels.make_standard_montage("biosemi64")
    info = mne.create_info(montage.ch_names, 100.0, "eeg").set_montage(montage)
    positions = np.array([ch["loc"][:3] for ch in info["chs"]])
    expected = mne.channels.find_layout(info).pos[:, :2]
    np.testing.assert_allclose(scaled(layout(positions)), scaled(expected), atol=1e-9)


def test_layout_is_that_of_mne_for_a_meg_system_without_a_drawing():
    rng = np.random.default_rng(0)
    positions = rng.standard_normal((20, 3))
    positions[:, 2] = np.abs(positions[:, 2])
    positions *= 0.12 / np.linalg.norm(positions, axis=1, keepdims=True)
    info = mne.create_info(20, 100.0, "mag")
    for channel, position in zip(info["chs"], positions, strict=True):
        channel["loc"][:3], channel["coil_type"] = position, mne.io.constants.FIFF.FIFFV_COIL_QUSPIN_ZFOPM_MAG
    expected = mne.channels.find_layout(info).pos[:, :2]
    np.testing.assert_allclose(scaled(layout(positions)), scaled(expected), atol=1e-9)


def test_the_vertex_lies_in_the_middle():
    np.testing.assert_allclose(layout(np.array([[0, 0, 0.1], [0, 0.1, 0]])), [[0, 0], [0, 0.05 * np.pi]])


@pytest.mark.parametrize(("n_dims", "width"), [(2, 18), (3, 16)])
def test_a_disc_of_sensors_is_left_out_in_training(n_dims, width):
    adapter = adapter_of(signals(n=200), n_dims=n_dims, width=width)
    places, times = adapter.sensors["sub-01"].places, torch.zeros(200)
    for seed in range(100):
        torch.manual_seed(seed)
        centre = torch.rand(n_dims)
        torch.manual_seed(seed)
        weights = adapter.attention("sub-01")
        left_out = ((places - centre) ** 2).sum(dim=1).sqrt() <= 0.2
        assert torch.equal((weights == 0).all(dim=0), left_out)
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(5))
        times += left_out
    assert times.max() > 1
    assert not (adapter.eval().attention("sub-01") == 0).any()


def test_never_are_all_sensors_left_out():
    adapter = adapter_of(signals(n=1), dropout=5.0)
    torch.testing.assert_close(adapter.attention("sub-01"), torch.ones(5, 1))


def test_rows_never_reach_another_subjects_matrix():
    adapter = adapter_of(signals(), signals("sub-02", n=9, seed=1), bias=True)
    adapter(torch.randn(3, 9, 20), "sub-02").grid.sum().backward()
    assert adapter.matrices["sub-01"].grad is None
    assert adapter.biases["sub-01"].grad is None
    assert all(p.grad.abs().sum() > 0 for p in adapter.parameters_of("sub-02"))
    assert len(adapter.parameters_of("sub-02")) == 2
    before = adapter.eval()(torch.ones(1, 9, 20), "sub-02").grid
    with torch.no_grad():
        adapter.matrices["sub-01"].mul_(5)
    torch.testing.assert_close(adapter(torch.ones(1, 9, 20), "sub-02").grid, before)


def test_an_unseen_subject_gets_the_mean_matrix():
    adapter = adapter_of(signals(), signals("sub-02")).eval()
    x = torch.randn(2, 6, 20)
    mean = (adapter(x, "sub-01").grid + adapter(x, "sub-02").grid) / 2
    torch.testing.assert_close(adapter(x, None).grid, mean)
    adapter.add_subject(signals("sub-03", n=8, seed=5))
    torch.testing.assert_close(adapter.matrices["sub-03"],
                               (adapter.matrices["sub-01"] + adapter.matrices["sub-02"]) / 2)
    assert adapter(torch.randn(2, 8, 20), "sub-03").grid.shape == (2, 4, 20)


def test_subject_dropout_trains_the_matrix_of_unseen_subjects():
    adapter = adapter_of(signals(), signals("sub-02"), subject_dropout=0.25, dropout=0.0, bias=True)
    x = torch.randn(1, 6, 20).expand(4000, 6, 20)
    y = adapter(x, "sub-01").grid.detach()
    own, shared = adapter.eval()(x[:1], "sub-01").grid, adapter(x[:1], None).grid
    is_shared = (y - shared).abs().amax(dim=(1, 2)) < 1e-5
    is_own = (y - own).abs().amax(dim=(1, 2)) < 1e-5
    assert (is_shared ^ is_own).all()
    assert 0.22 < is_shared.float().mean() < 0.28


def test_published_sizes():
    specs = {f"s{i:02d}": signals(f"s{i:02d}", n=208, n_times=360) for i in range(27)}
    with torch.device("meta"):
        adapter = SpatialAttention(specs=specs, grid=Grid(270, 360))
        neuroai = SpatialAttention(specs=specs, grid=Grid(270, 360), n_dims=3, width=2000, subject_layers=False)
    assert sum(p.numel() for p in adapter.parameters()) == 552_960 + 73_170 + 27 * 72_900
    assert sum(p.numel() for p in neuroai.parameters()) == 540_000 + 73_170
    assert {k: tuple(v.shape) for k, v in neuroai.state_dict().items()} == {
        "heads": (270, 2000), "initial_linear.0.weight": (270, 270, 1), "initial_linear.0.bias": (270,)}


def test_a_shorter_grid_takes_means_of_successive_samples():
    spec = signals(n_times=21)
    adapter = SpatialAttention(specs={"sub-01": spec}, grid=Grid(4, 10), n_virtual=5, width=18).eval()
    whole = adapter_of(dataclasses.replace(spec, n_times=10)).eval()
    whole.load_state_dict(adapter.state_dict())
    x = torch.randn(2, 6, 21)
    torch.testing.assert_close(adapter(x, "sub-01").grid,
                               whole(x[..., :20].unflatten(-1, (10, 2)).mean(-1), "sub-01").grid)


def test_messages():
    spec = signals()
    with pytest.raises(ValueError, match=r"subject 'sub-01': expected sensor positions, got none\. .*subject_token"):
        adapter_of(signals(positions=None))
    unknown = spec.positions.copy()
    unknown[[1, 4], 2] = np.nan
    with pytest.raises(ValueError, match=r"expected a position for each of 6 sensors, got none for 2: \['M1', 'M4'\]"):
        adapter_of(signals(positions=unknown))
    adapter = adapter_of(spec, signals("sub-02", n=9, seed=1))
    with pytest.raises(ValueError, match="subject 'sub-02': expected 9 channels of 20 samples, got 6 of 20"):
        adapter(torch.randn(1, 6, 20), "sub-02")
    with pytest.raises(ValueError, match=r"expected one of the subjects \['sub-01', 'sub-02'\], got 'x'"):
        adapter(torch.randn(1, 6, 20), "x")
    with pytest.raises(ValueError, match="got an unseen one, whose sensors are not known"):
        adapter(torch.randn(1, 6, 20), None)
    with pytest.raises(ValueError, match="expected the encoder's 20 samples, got 30"):
        adapter.add_subject(signals("sub-03", n_times=30))
    with pytest.raises(ValueError, match=r"as width twice a square \(cube\), got 3 and 2048"):
        adapter_of(spec, n_dims=3, width=2048)
    with pytest.raises(ValueError, match="expected the encoder's 4 channels as n_virtual, got 5"):
        adapter_of(spec, initial=False)
    with pytest.raises(ValueError, match=r"subject_dropout in \[0, 1\), got 1"):
        adapter_of(spec, subject_dropout=1)

"""Models of braindecode through the wrapper equal those called directly; every preset builds and learns."""

from pathlib import Path

import braindecode.models
import numpy as np
import pytest
import torch
import yaml

from brain2img.encoders.braindecode import Braindecode
from brain2img.records import Features, Grid, SignalSpec

CONFIGS = Path(__file__).parents[2] / "configs" / "encoder"
PRESETS = sorted(p.stem for p in CONFIGS.glob("*.yaml")
                 if "braindecode" in yaml.safe_load(p.read_text()).get("defaults", []))


def spec(n_channels=63, n_times=250, name="sub-01", **options):
    return SignalSpec(subject=name, modality="eeg", units="V", n_channels=n_channels, n_times=n_times, sfreq=250.0,
                      ch_names=tuple(f"E{i}" for i in range(n_channels)), **options)


def preset(name, *, specs=None, **changes):
    content = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    base = yaml.safe_load((CONFIGS / "braindecode.yaml").read_text())
    given = {k: v for k, v in {**base, **content}.items() if k not in ("_target_", "defaults")}
    return Braindecode(specs=specs or {"sub-01": spec()}, **{**given, **changes})


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_the_model_called_directly_and_learns(name):
    torch.manual_seed(0)
    encoder = preset(name)
    arguments = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["arguments"]
    torch.manual_seed(0)
    direct = getattr(braindecode.models, yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["model"])(
        n_chans=63, n_times=250, n_outputs=1024, sfreq=250.0, **arguments)
    x = torch.randn(4, 63, 250)
    torch.testing.assert_close(encoder.eval()(Features(x))[:, 0], direct.eval()(x))
    assert encoder.hidden == (1, 1024)
    assert encoder.grid == Grid(63, 250)
    encoder.train()(Features(x)).square().sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_presets_have_the_published_sizes():
    assert preset("eeg_conformer").model.final_fc_length == 1760
    assert preset("eegnet").model.F2 == 160


def test_features_are_what_the_final_layer_takes():
    encoder = preset("eeg_conformer").eval()
    seen = []
    encoder.model.final_layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.randn(3, 63, 250)
    encoder(Features(x))
    without = preset("eeg_conformer", features=True).eval()
    without.load_state_dict({k: v for k, v in encoder.state_dict().items() if "final_layer" not in k})
    assert without.hidden == (1, 32)
    torch.testing.assert_close(without(Features(x))[:, 0], seen[0])
    assert preset("atcnet", features=True)(Features(x)).shape == (3, 1, 16)


def test_log_softmax_is_a_switch():
    torch.manual_seed(0)
    plain = preset("shallow_fbcsp").eval()
    torch.manual_seed(0)
    published = preset("shallow_fbcsp", log_softmax=True).eval()
    x = torch.randn(3, 63, 250)
    torch.testing.assert_close(published(Features(x)), plain(Features(x)).log_softmax(dim=-1))


def test_models_are_told_names_positions_and_sampling_rate():
    positions = np.random.default_rng(0).uniform(-0.1, 0.1, (6, 3))
    encoder = Braindecode(specs={"sub-01": spec(6, 200, positions=positions)}, model="EEGNet", bin=2, n_outputs=4)
    assert encoder.model.sfreq == 125.0
    assert encoder.model.n_times == 100
    assert [ch["ch_name"] for ch in encoder.model.chs_info] == [f"E{i}" for i in range(6)]
    np.testing.assert_array_equal([ch["loc"][:3] for ch in encoder.model.chs_info], positions)


def test_messages():
    with pytest.raises(ValueError, match=r"expected a model of \['ATCNet', .*'EEGNet', .*got 'EEGNett'"):
        preset("braindecode", model="EEGNett")
    with pytest.raises(ValueError, match=r"model EEGNet: expected arguments of .*'F1'.*, got \['f1'\]"):
        preset("braindecode", arguments={"f1": 8})
    with pytest.raises(ValueError, match=r"model ShallowFBCSPNet: .* got 63 channels of 30 samples at 250.0 Hz "
                                         r"\(bin 1\), which it refuses \(\w+: .+\)\. Use a longer window"):
        preset("shallow_fbcsp", specs={"sub-01": spec(n_times=30)})
    with pytest.raises(ValueError, match="expected a final layer to take out, got a model without one"):
        preset("braindecode", model="SSTDPN", features=True)
    with pytest.raises(ValueError, match="expected the same channels and samples for all subjects"):
        preset("eegnet", specs={"a": spec(63, name="a"), "b": spec(62, name="b")})


def test_parameters_are_counted_without_memory_for_the_rest():
    spec = SignalSpec(subject="s", modality="eeg", units="V", n_channels=17, n_times=125, sfreq=125.0)
    arguments = {"filter_time_length": 5, "pool_time_length": 13, "pool_time_stride": 3}
    built = Braindecode(specs={"s": spec}, model="EEGConformer", n_outputs=16, arguments=arguments)
    with torch.device("meta"):
        counted = Braindecode(specs={"s": spec}, model="EEGConformer", n_outputs=16, arguments=arguments)
    assert counted.hidden == built.hidden
    assert [p.shape for p in counted.parameters()] == [p.shape for p in built.parameters()]

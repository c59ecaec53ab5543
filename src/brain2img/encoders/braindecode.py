"""Any model of braindecode, by its name."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from brain2img.interfaces import Encoder
from brain2img.layers import common_size
from brain2img.records import Features, Grid, SignalSpec

KINDS = {"meg": 1, "eeg": 2}
"""MNE's numbers of channel kinds; 4 are head coordinates."""


class Braindecode(Encoder):
    """A model of braindecode (Schirrmeister et al. 2017, https://braindecode.org), with what it is told by the signals.

    Number and names of channels, their positions, samples and sampling rate come from the signals, the rest from the
    YAML. Its `n_outputs` values are the embedding itself where the head is ``encoder_output``, as the retrieval
    baselines of ATM (https://github.com/dongyangli-del/EEG_Image_decode) have them, or hidden states for any other
    head. Foundation models begin untrained here (REVE downloads its bank of positions all the same).

    Deviation: those baselines apply log-softmax to the embedding in three of the models, which forces it to be
    negative; here it is off unless `log_softmax` says otherwise.

    Parameters
    ----------
    specs
        Subject -> its signals; C and T must be the same for all.
    model
        Name of the class in `braindecode.models`, e.g. "EEGNet".
    arguments
        Its other arguments: numbers, strings, booleans, lists.
    n_outputs
        Width H of the output.
    features
        Give what the model has before its final layer (``final_layer``, which is taken out) instead, flat.
    log_softmax
        Apply log-softmax to the output.
    bin
        Successive samples that the adapter averages to one of the grid's; 1 as published. The model is told the lower
        sampling rate.

    Raises
    ------
    ValueError
        If the model or an argument is unknown, it has no final layer to take out, or it refuses signals of this size.
    """

    def __init__(self, *, specs: Mapping[str, SignalSpec], model: str, arguments: Mapping[str, Any] | None = None,
                 n_outputs: int = 1024, features: bool = False, log_softmax: bool = False, bin: int = 1) -> None:
        super().__init__()
        n_channels, n_times = common_size(specs, what="Braindecode encoder", bin=bin)
        self.grid, self.log_softmax = Grid(n_channels, n_times), log_softmax
        spec = next(iter(specs.values()))
        cls = _class_of(model)
        known, arguments = inspect.signature(cls.__init__).parameters, dict(arguments or {})
        if not set(arguments) <= set(known):
            raise ValueError(f"Braindecode encoder, model {model}: expected arguments of "
                             f"{sorted(set(known) - {'self'})}, got {sorted(set(arguments) - set(known))}. "
                             "Correct encoder.arguments.")
        sfreq = None if spec.sfreq is None else spec.sfreq / bin
        given = {"n_chans": n_channels, "n_times": n_times, "sfreq": sfreq, "n_outputs": n_outputs,
                 "chs_info": _channels(spec)}
        try:
            with torch.device("cpu"):  # even where parameters are only counted: some models run to learn their sizes
                self.model = cls(**{k: v for k, v in given.items() if k in known}, **arguments)
            if features:
                self._take_out_final_layer(model)
            with torch.no_grad(), torch.device("cpu"):
                example = self.eval()._flat(torch.zeros(2, n_channels, n_times))
        except Exception as error:  # braindecode raises what comes; what it says is what the user needs
            if isinstance(error, ValueError) and str(error).startswith("Braindecode encoder"):
                raise
            raise ValueError(f"Braindecode encoder, model {model}: expected signals and arguments that it can take, got"
                             f" {n_channels} channels of {n_times} samples at {sfreq} Hz (bin {bin}), which it refuses "
                             f"({type(error).__name__}: {error}). Use a longer window (data.window), the channels it "
                             "asks for, or smaller kernels and pools in encoder.arguments.") from error
        self.hidden = (1, example.shape[1])
        self.train()

    def _take_out_final_layer(self, name: str) -> None:
        layer = getattr(self.model, "final_layer", None)
        if layer is None or isinstance(layer, nn.Identity):
            raise ValueError(f"Braindecode encoder, model {name}: expected a final layer to take out, got a model "
                             "without one. Set encoder.features=false.")
        self.model.final_layer = nn.ModuleList(nn.Identity() for _ in layer) if isinstance(
            layer, nn.ModuleList) else nn.Identity()

    def _flat(self, x: Tensor) -> Tensor:
        output = self.model(x)
        if not isinstance(output, Tensor) or output.ndim < 2 or len(output) != len(x):
            raise ValueError(f"Braindecode encoder, model {type(self.model).__name__}: expected one array a trial, got "
                             f"{getattr(output, 'shape', type(output).__name__)}. Choose another model.")
        return output.flatten(1)

    def forward(self, features: Features) -> Tensor:
        """Map a grid ``(B, C, T)`` to ``(B, 1, H)``; tokens are ignored."""
        output = self._flat(features.grid)
        return (output.log_softmax(dim=1) if self.log_softmax else output)[:, None]

    @classmethod
    def tiny(cls) -> Self:
        """Return an EEGNet of 5 channels and 80 samples."""
        spec = SignalSpec(subject="sub-01", modality="eeg", units="V", n_channels=5, n_times=80, sfreq=100.0)
        return cls(specs={"sub-01": spec}, model="EEGNet", arguments={"kernel_length": 8}, n_outputs=8)


def _class_of(name: str) -> Any:
    """Return the class of this name.

    Raises
    ------
    ValueError
        If braindecode has none, with those that it has.
    """
    with warnings.catch_warnings():  # MNE gives montages other names, which is for braindecode to follow
        warnings.filterwarnings("ignore", message=r"Montage name '\w+' is deprecated")
        from braindecode.models.util import models_dict
    if name not in models_dict:
        raise ValueError(f"Braindecode encoder: expected a model of {sorted(models_dict)}, got {name!r}. "
                         "Correct encoder.model.")
    return models_dict[name]


def _channels(spec: SignalSpec) -> list[dict[str, Any]]:
    """Return what MNE calls ``info["chs"]``, as far as the signals say: names, kinds and positions."""
    positions = np.zeros((spec.n_channels, 3)) if spec.positions is None else spec.positions
    names = spec.ch_names or tuple(str(i) for i in range(spec.n_channels))
    return [{"ch_name": name, "kind": KINDS.get(spec.modality, 2), "coord_frame": 4,
             "loc": np.concatenate([position, np.zeros(9)])}
            for name, position in zip(names, positions, strict=True)]

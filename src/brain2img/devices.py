"""The one choice between GPU and CPU."""

from __future__ import annotations

import torch


def device_of(name: str = "auto") -> str:
    """Return the device that `name` asks for: "auto" takes a GPU if there is one, "gpu" is "cuda"."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return "cuda" if name == "gpu" else name

"""What every part of the registry can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self


class Part(ABC):
    """What every class that a YAML names can do."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> Self:
        """Return a small instance."""

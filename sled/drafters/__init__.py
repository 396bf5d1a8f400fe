"""Drafters: whatever small model a device has. numpy is enough for most; torch is imported where it is needed."""

from sled.drafters.opening import PACKAGED, open_drafter
from sled.drafters.protocol import Drafter, NoDrafter

__all__ = ["PACKAGED", "Drafter", "NoDrafter", "open_drafter"]

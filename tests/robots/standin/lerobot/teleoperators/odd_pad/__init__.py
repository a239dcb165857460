from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lerobot.teleoperators import TeleoperatorConfig


@TeleoperatorConfig.register_subclass("odd_pad")
@dataclass(kw_only=True)
class OddPadConfig(TeleoperatorConfig):
    pass


class OddPad:
    """Says what it gives in the other way, has nothing to calibrate, and says so with None."""

    name = "odd_pad"
    is_calibrated = None

    def __init__(self, config: OddPadConfig) -> None:
        self.config, self.id, self.is_connected = config, config.id, False

    @property
    def action_features(self) -> dict[str, Any]:
        return {"dtype": "float32", "shape": (2,), "names": {"delta_x": 0, "delta_y": 1}}

    def connect(self) -> None:
        self.is_connected = True

    def disconnect(self) -> None:
        self.is_connected = False

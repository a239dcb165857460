from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import draccus


@dataclass(kw_only=True)
class TeleoperatorConfig(draccus.ChoiceRegistry):
    id: str | None = None
    calibration_dir: Path | None = None


def make_teleoperator_from_config(config: Any) -> Any:
    from lerobot.teleoperators import odd_pad, so_leader

    pads = isinstance(config, odd_pad.OddPadConfig)
    return odd_pad.OddPad(config) if pads else so_leader.SOLeader(config)

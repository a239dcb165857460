from dataclasses import dataclass

import draccus


@dataclass(kw_only=True)
class CameraConfig(draccus.ChoiceRegistry):
    fps: int | None = None
    width: int | None = None
    height: int | None = None

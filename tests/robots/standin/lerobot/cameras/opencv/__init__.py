from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lerobot.cameras import CameraConfig
from lerobot.devices import Camera

FOUND: list[dict[str, Any]] = []
"""What is plugged in; tests fill it."""


@CameraConfig.register_subclass("opencv")
@dataclass(kw_only=True)
class OpenCVCameraConfig(CameraConfig):
    index_or_path: int | str
    use_depth: bool = False


class OpenCVCamera(Camera):
    def __init__(self, config: OpenCVCameraConfig) -> None:
        super().__init__(config.height or 4, config.width or 6, config.index_or_path)

    @staticmethod
    def find_cameras() -> list[dict[str, Any]]:
        return list(FOUND)

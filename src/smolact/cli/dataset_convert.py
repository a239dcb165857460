"""`smolact dataset convert`: another version of the format, or cameras stored as images or as video."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from smolact.cli.dataset_edit import EditConfig, carry_out, open_source, parse_edit
from smolact.errors import ConfigError
from smolact.settings import setting

VERSIONS, IMAGE_DTYPES = ("v3.0", "v2.1"), ("image", "video")
USAGE = "smolact dataset convert --dataset.root=FOLDER [--version=v2.1] [--cameras=image] [--output=FOLDER]"


@dataclass
class ConvertConfig(EditConfig):
    """What `smolact dataset convert` takes."""

    version: str | None = setting(None, "v3.0 or v2.1; v3.0 when null.")
    cameras: str | None = setting(None, "image or video: how all cameras are stored; as they are when null.")


def run(argv: Sequence[str]) -> int:
    """Make the new dataset."""
    config = parse_edit(ConvertConfig, argv, USAGE, __doc__)
    if config is None:
        return 0
    if config.version not in (None, *VERSIONS) or config.cameras not in (None, *IMAGE_DTYPES):
        raise ConfigError(
            f"--version={config.version}, --cameras={config.cameras}: expected one of {', '.join(VERSIONS)}, and one of "
            f"{', '.join(IMAGE_DTYPES)}."
        )
    if config.version is None and config.cameras is None:
        raise ConfigError(f"To what? Give --version or --cameras: {USAGE}")
    source = open_source(config.dataset)

    from smolact.datasets.edit import whole

    cameras = {
        key: config.cameras
        for key in source.meta.camera_keys
        if config.cameras and source.meta.features[key].dtype != config.cameras
    }
    plan = dataclasses.replace(whole(source), cameras=cameras, version=config.version or "v3.0")
    carry_out(plan, config.output, config.quick)
    return 0

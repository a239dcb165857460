"""`smolact dataset convert`: another version of the format, or cameras stored as images or as video."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from smolact.cli.dataset_edit import EditConfig, apply_edit, open_source, parse_edit
from smolact.errors import ConfigError
from smolact.settings import setting

VERSIONS, IMAGE_DTYPES = ("v3.0", "v2.1"), ("image", "video")
USAGE = "smolact dataset convert --dataset.root=FOLDER [--version=v2.1] [--cameras=image] [--output=FOLDER]"


@dataclass
class ConvertConfig(EditConfig):
    """Settings of `smolact dataset convert`."""

    version: str = setting("v3.0", "v3.0 or v2.1.")
    cameras: str | None = setting(None, "image or video: how all cameras are stored; as they are when null.")


def run(argv: Sequence[str]) -> int:
    """Write the new dataset."""
    config = parse_edit(ConvertConfig, argv, USAGE, __doc__)
    if config is None:
        return 0
    if config.version not in VERSIONS or config.cameras not in (None, *IMAGE_DTYPES):
        raise ConfigError(
            f"--version={config.version}, --cameras={config.cameras}: expected one of {', '.join(VERSIONS)}, and one of "
            f"{', '.join(IMAGE_DTYPES)}."
        )
    source = open_source(config.dataset)

    from smolact.datasets.edit import whole

    cameras = {
        key: config.cameras
        for key in source.meta.camera_keys
        if config.cameras and source.meta.features[key].dtype != config.cameras
    }
    if config.version == source.meta.codebase_version and not cameras:
        stored = f", and all its cameras are stored as {config.cameras}" if config.cameras else ""
        raise ConfigError(
            f"{source.meta.root} is of version {source.meta.info.get('codebase_version')} already{stored}: there is nothing to convert. Give "
            f"--version={next(name for name in VERSIONS if name != config.version)}, or --cameras=image or video: {USAGE}"
        )
    plan = dataclasses.replace(whole(source), cameras=cameras, version=config.version)
    apply_edit(plan, config.output, config.quick)
    return 0

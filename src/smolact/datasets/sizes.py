"""Image sizes of cameras, read from their videos."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from smolact.datasets.format import MAX_VALUES
from smolact.errors import VideoError

logger = logging.getLogger(__name__)


def first_size(root: Path, paths: Iterable[str]) -> tuple[int, int] | None:
    """The (height, width) of the first readable video of `paths`, relative to `root`; None if there is none."""
    from smolact.datasets.remux import open_video

    for path in dict.fromkeys(paths):
        if not (root / path).is_file():
            continue
        try:
            with open_video(root / path) as container:
                context = container.streams.video[0].codec_context
                if 0 < context.height * context.width * 3 <= MAX_VALUES:
                    return context.height, context.width
        except VideoError:  # reported when the file is needed
            continue
    return None


@lru_cache(maxsize=1024)
def warn_of_size_mismatch(info: Path, key: str, declared: tuple[int, int], actual: tuple[int, int]) -> None:
    """Warn, once per process, that a camera's (height, width) in `info.json` differs from its video."""
    logger.warning(
        "%s says that '%s' is %d × %d (height × width), but its video is %d × %d: the video's size is used. smolact dataset compact "
        "writes it into info.json.",
        info,
        key,
        *declared,
        *actual,
    )

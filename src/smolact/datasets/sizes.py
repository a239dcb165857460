"""The size of a camera's pictures, as its videos have it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from smolact.datasets.format import MAX_VALUES
from smolact.errors import VideoError

logger = logging.getLogger(__name__)


def first_size(root: Path, places: Iterable[str]) -> tuple[int, int] | None:
    """The (height, width) of the first video of `places`, relative to `root`, that is here and can be opened; None if none is."""
    from smolact.datasets.remux import open_video

    for place in dict.fromkeys(places):
        if not (root / place).is_file():
            continue
        try:
            with open_video(root / place) as container:
                context = container.streams.video[0].codec_context
                if 0 < context.height * context.width * 3 <= MAX_VALUES:
                    return context.height, context.width
        except VideoError:  # whoever needs that file will name it
            continue
    return None


@lru_cache(maxsize=1024)
def tell_other_size(info: Path, key: str, said: tuple[int, int], found: tuple[int, int]) -> None:
    """Say, once in a process, that `info.json` has another (height, width) of a camera than its video."""
    logger.warning(
        "%s says that '%s' is %d × %d (height × width), but its video is %d × %d: the video's size is used. smolact dataset compact "
        "writes it into info.json.",
        info,
        key,
        *said,
        *found,
    )

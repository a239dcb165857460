"""`smolact dataset filter`: the episodes whose task or length is as asked; the others are left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from smolact.cli.dataset_edit import EditConfig, carry_out, open_source, parse_edit
from smolact.errors import ConfigError
from smolact.settings import setting

USAGE = "smolact dataset filter --dataset.root=FOLDER [--task=TEXT] [--min_frames=N] [--output=FOLDER]"


@dataclass
class FilterConfig(EditConfig):
    """What `smolact dataset filter` takes."""

    task: str | None = setting(
        None, "Keep episodes with this in one of their tasks (upper and lower case alike)."
    )
    min_frames: int | None = setting(None, "Keep episodes of at least so many frames.")
    max_frames: int | None = setting(None, "Keep episodes of at most so many frames.")


def run(argv: Sequence[str]) -> int:
    """Make the new dataset."""
    config = parse_edit(FilterConfig, argv, USAGE, __doc__)
    if config is None:
        return 0
    source = open_source(config.dataset, anew=config.output is not None)
    wanted = (config.task, config.min_frames, config.max_frames)
    if wanted == (None, None, None):
        raise ConfigError(f"Which episodes? Give --task, --min_frames or --max_frames: {USAGE}")

    from smolact.datasets.edit import filter_episodes

    episodes, words = source.meta.episodes, (config.task or "").lower()
    fewest, most = config.min_frames or 0, config.max_frames

    def keeps(number: int) -> bool:
        length = int(episodes.length[number])
        says = any(words in task.lower() for task in episodes.tasks[number])
        return length >= fewest and (most is None or length <= most) and (says or config.task is None)

    carry_out(filter_episodes(source, keeps), config.output, config.quick)
    return 0

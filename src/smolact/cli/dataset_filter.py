"""`smolact dataset filter`: the episodes whose task, length or outcome is as asked; the others are left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from smolact.cli.dataset_edit import EditConfig, apply_edit, open_source, parse_edit
from smolact.errors import ConfigError
from smolact.settings import setting

USAGE = "smolact dataset filter --dataset.root=FOLDER [--task=TEXT] [--min_frames=N] [--success=true] [--output=FOLDER]"


@dataclass
class FilterConfig(EditConfig):
    """Settings of `smolact dataset filter`."""

    task: str | None = setting(
        None, "Keep episodes with this in one of their tasks (upper and lower case alike)."
    )
    min_frames: int | None = setting(None, "Keep episodes of at least so many frames.")
    max_frames: int | None = setting(None, "Keep episodes of at most so many frames.")
    success: bool | None = setting(
        None, "Keep episodes that succeeded (false: that failed), by their last frame or the recorder's log."
    )
    min_reward: float | None = setting(None, "Keep episodes whose last frame has at least this reward.")


def run(argv: Sequence[str]) -> int:
    """Write the new dataset."""
    config = parse_edit(FilterConfig, argv, USAGE, __doc__)
    if config is None:
        return 0
    source = open_source(config.dataset, to_new_folder=config.output is not None)
    criteria = (config.task, config.min_frames, config.max_frames, config.success, config.min_reward)
    if all(value is None for value in criteria):
        raise ConfigError(
            f"Which episodes? Give --task, --min_frames, --max_frames, --success or --min_reward: {USAGE}"
        )

    from smolact.datasets.edit import filter_episodes
    from smolact.datasets.outcomes import rewards, successes

    episodes, text = source.meta.episodes, (config.task or "").lower()
    min_frames, max_frames = config.min_frames or 0, config.max_frames
    outcomes = None if config.success is None else successes(source)
    final_rewards = None if config.min_reward is None else rewards(source)

    def is_kept(episode: int) -> bool:
        length = int(episodes.length[episode])
        return (
            length >= min_frames
            and (max_frames is None or length <= max_frames)
            and (config.task is None or any(text in task.lower() for task in episodes.tasks[episode]))
            and (outcomes is None or outcomes[episode] is config.success)
            and (final_rewards is None or final_rewards[episode] >= (config.min_reward or 0.0))
        )

    apply_edit(filter_episodes(source, is_kept), config.output, config.quick)
    return 0

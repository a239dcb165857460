"""The commands that write a new dataset from others: `smolact dataset delete`, `filter`, `split`, `merge` and so on.

Each command's docstring is the head of its help page.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolact.cli.command import command
from smolact.cli.dataset_flags import WhichDataset, dataset_folder
from smolact.cli.progress import stages
from smolact.errors import ConfigError
from smolact.settings import setting

if TYPE_CHECKING:
    from smolact.datasets.edit import EditPlan
    from smolact.datasets.sources import Source

COMPACT = "smolact dataset compact --dataset.root=FOLDER [--output=FOLDER]"
CONVERT = "smolact dataset convert --dataset.root=FOLDER [--version=v2.1] [--cameras=image] [--output=FOLDER]"
DELETE = "smolact dataset delete --dataset.root=FOLDER --episodes=[3, 7] [--output=FOLDER]"
FILTER = "smolact dataset filter --dataset.root=FOLDER [--task=TEXT] [--min_frames=N] [--success=true] [--output=FOLDER]"
MERGE = "smolact dataset merge --datasets=[FOLDER, OWNER/NAME, …] --output=FOLDER"
REMOVE_FEATURE = "smolact dataset remove-feature --dataset.root=FOLDER --features=[NAME] [--output=FOLDER]"
RENAME_TASK = "smolact dataset rename-task --dataset.root=FOLDER --old=TEXT --new=TEXT [--output=FOLDER]"
SPLIT = "smolact dataset split --dataset.root=FOLDER --parts={train: 0.8, test: 0.2} --output=FOLDER"
STATS = "smolact dataset stats --dataset.root=FOLDER [--output=FOLDER]"
"""Usage of each command."""

VERSIONS, IMAGE_DTYPES = ("v3.0", "v2.1"), ("image", "video")
_QUICK = "Do not decode the pictures of the result when it is checked."


@dataclass
class EditConfig:
    """Settings of a command that edits one dataset."""

    dataset: WhichDataset = field(default_factory=WhichDataset)
    output: Path | None = setting(
        None,
        "A new folder for the result; when null, it takes the place of the old dataset once it is checked.",
    )
    quick: bool = setting(False, _QUICK)

    def source(self) -> Source:
        """Open the dataset to edit.

        Raises:
            ConfigError: it is not v3.0, and the result would replace it in place.
        """
        source = open_source(self.dataset)
        version = source.meta.codebase_version
        if version != "v3.0" and self.output is None:
            raise ConfigError(
                f"{source.meta.root} is of version {version}, and edits write v3.0. Give --output=FOLDER for the result, or "
                "convert it first: smolact dataset convert --version=v3.0"
            )
        return source


@command(EditConfig, COMPACT)
def compact(config: EditConfig) -> None:
    """`smolact dataset compact`: many small files become few of the format's sizes; videos are joined as they are."""
    source = config.source()
    from smolact.datasets import edit

    write(edit.all_episodes(source), config.output, config.quick)


@dataclass
class ConvertConfig(EditConfig):
    """Settings of `smolact dataset convert`."""

    version: str = setting("v3.0", "v3.0 or v2.1.")
    cameras: str | None = setting(None, "image or video: how all cameras are stored; as they are when null.")


@command(ConvertConfig, CONVERT)
def convert(config: ConvertConfig) -> None:
    """`smolact dataset convert`: another version of the format, or cameras stored as images or as video."""
    if config.version not in VERSIONS or config.cameras not in (None, *IMAGE_DTYPES):
        raise ConfigError(
            f"--version={config.version}, --cameras={config.cameras}: expected one of {', '.join(VERSIONS)}, and one of "
            f"{', '.join(IMAGE_DTYPES)}."
        )
    source = open_source(config.dataset)
    from smolact.datasets import edit

    cameras = {
        key: config.cameras
        for key in source.meta.camera_keys
        if config.cameras and source.meta.features[key].dtype != config.cameras
    }
    if config.version == source.meta.codebase_version and not cameras:
        stored = f", and all its cameras are stored as {config.cameras}" if config.cameras else ""
        raise ConfigError(
            f"{source.meta.root} is of version {source.meta.info.get('codebase_version')} already{stored}: there is nothing to convert. Give "
            f"--version={next(name for name in VERSIONS if name != config.version)}, or --cameras=image or video: {CONVERT}"
        )
    plan = dataclasses.replace(edit.all_episodes(source), cameras=cameras, version=config.version)
    write(plan, config.output, config.quick)


@dataclass
class DeleteConfig(EditConfig):
    """Settings of `smolact dataset delete`."""

    episodes: list[int] | None = setting(None, "The episodes to delete, numbered from 0.")


@command(DeleteConfig, DELETE)
def delete(config: DeleteConfig) -> None:
    """`smolact dataset delete`: the dataset without some of its episodes."""
    require_flag(config.episodes, "--episodes", DELETE)
    source = config.source()
    from smolact.datasets import edit

    write(edit.delete_episodes(source, config.episodes or []), config.output, config.quick)


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


@command(FilterConfig, FILTER)
def filter_episodes(config: FilterConfig) -> None:
    """`smolact dataset filter`: the episodes whose task, length or outcome is as asked; the others are left out."""
    source = config.source()
    criteria = (config.task, config.min_frames, config.max_frames, config.success, config.min_reward)
    if all(value is None for value in criteria):
        raise ConfigError(
            f"Which episodes? Give --task, --min_frames, --max_frames, --success or --min_reward: {FILTER}"
        )
    from smolact.datasets import edit
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

    chosen = list(filter(is_kept, range(source.meta.total_episodes)))
    write(edit.select_episodes(source, chosen), config.output, config.quick)


@dataclass
class MergeConfig:
    """Settings of `smolact dataset merge`."""

    datasets: list[str] | None = setting(None, "The datasets, in order: folders or Hub ids.")
    output: Path | None = setting(None, "A new folder for the result.")
    reorder_names: bool = setting(
        False,
        "Where a dataset has the first one's joints (the same names) in another order, put their numbers into the first one's.",
    )
    robot_type: str | None = setting(
        None, "What the new dataset says of its robot, if the datasets name different ones."
    )
    quick: bool = setting(False, _QUICK)


@command(MergeConfig, MERGE)
def merge(config: MergeConfig) -> None:
    """`smolact dataset merge`: several datasets with the same features, one after the other, as a new one."""
    require_flag(config.datasets, "--datasets", MERGE)
    require_flag(config.output, "--output", MERGE)
    from smolact.datasets import edit

    sources = [open_source(WhichDataset(repo_id=name)) for name in config.datasets or []]
    plan = edit.merge(sources, reorder_names=config.reorder_names, robot_type=config.robot_type)
    write(plan, config.output, config.quick)


@dataclass
class RemoveConfig(EditConfig):
    """Settings of `smolact dataset remove-feature`."""

    features: list[str] | None = setting(None, "The features to leave out.")


@command(RemoveConfig, REMOVE_FEATURE)
def remove_feature(config: RemoveConfig) -> None:
    """`smolact dataset remove-feature`: the dataset without some of its cameras or columns."""
    require_flag(config.features, "--features", REMOVE_FEATURE)
    source = config.source()
    from smolact.datasets import edit

    write(edit.remove_features(source, config.features or []), config.output, config.quick)


@dataclass
class RenameConfig(EditConfig):
    """Settings of `smolact dataset rename-task`."""

    old: str | None = setting(None, "The task as it is.")
    new: str | None = setting(None, "What it is to be.")


@command(RenameConfig, RENAME_TASK)
def rename_task(config: RenameConfig) -> None:
    """`smolact dataset rename-task`: another text for an instruction; one that is there already joins both."""
    require_flag(config.old, "--old", RENAME_TASK)
    require_flag(config.new, "--new", RENAME_TASK)
    source = config.source()
    from smolact.datasets import edit

    write(edit.rename_task(source, config.old or "", config.new or ""), config.output, config.quick)


@dataclass
class SplitConfig(EditConfig):
    """Settings of `smolact dataset split`."""

    parts: dict[str, Any] = setting(
        dict, "Name to fraction (of the episodes, in order) or to a list of episodes."
    )


@command(SplitConfig, SPLIT)
def split(config: SplitConfig) -> None:
    """`smolact dataset split`: several datasets of one, each a share of the episodes or a list of them."""
    if not config.parts or config.output is None:
        raise ConfigError(f"Which parts, and where to? {SPLIT}")
    source = open_source(config.dataset)
    from smolact.datasets import edit

    for name, part in config.parts.items():
        numbers = isinstance(part, list) and all(type(number) is int for number in part)
        if Path(name).name != name or not (numbers or type(part) in (int, float)):
            raise ConfigError(
                f"--parts has {name!r}: {part!r}; expected a folder's name, and a fraction or a list of episodes."
            )
    for name, plan in edit.split(source, config.parts).items():
        write(plan, config.output / name, config.quick)


@command(EditConfig, STATS)
def stats(config: EditConfig) -> None:
    """`smolact dataset stats`: all statistics, computed again from the frames.

    They are exact; pictures of 300 pixels a side or more are counted on a grid of about 150 points a side.
    """
    source = config.source()
    from smolact.datasets import edit

    write(dataclasses.replace(edit.all_episodes(source), recompute=True), config.output, config.quick)


def open_source(which: WhichDataset) -> Source:
    """Open a dataset to edit, after undoing an edit of it that was killed."""
    from smolact.datasets.rewrite import restore
    from smolact.datasets.sources import Source

    restore(Path(which.root or which.repo_id or "."))
    return Source(dataset_folder(which))


def write(plan: EditPlan, output: Path | None, quick: bool) -> None:
    """Write the dataset, in place when `output` is None, and print its folder and size."""
    from smolact.datasets.rewrite import build, replace

    with stages() as progress:
        folder = replace(plan, quick, progress) if output is None else build(plan, output, quick, progress)
    frames = sum(int(plan.sources[source].meta.episodes.length[episode]) for source, episode in plan.episodes)
    sys.stdout.write(f"{folder}: {len(plan.episodes)} episodes, {frames} frames, {plan.version}\n")


def require_flag(value: object, flag: str, usage: str) -> None:
    """Raise a `ConfigError` unless a setting was given."""
    if value is None or value == []:
        raise ConfigError(f"{flag} is missing: {usage}")

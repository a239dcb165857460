"""`smolact dataset viz`: look at episodes: films, state and action by joint name, tasks.

With --html it writes one page that needs nothing but a browser, or a folder of a page and its films. Without it, it
opens rerun, where that is installed.
"""

from __future__ import annotations

import logging
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

from smolact.cli.command import command
from smolact.cli.dataset_flags import WhichDataset, dataset_folder
from smolact.cli.progress import stages
from smolact.errors import ConfigError
from smolact.settings import at_least, setting

logger = logging.getLogger(__name__)

USAGE = "smolact dataset viz --dataset.root=FOLDER --html [--episodes=0:10] [--output=page.html | --output=FOLDER]"
DEFAULT_EPISODES = 10
"""Number of episodes shown by default; a folder gets all."""


@dataclass
class VizConfig:
    """Settings of `smolact dataset viz`."""

    dataset: WhichDataset = field(default_factory=WhichDataset)
    html: bool = setting(False, "Write a page for the browser.")
    episodes: str | None = setting(
        None,
        "Which episodes: 3, 0:10 (the first ten), 20: or 1,4,7:9. When null the first ten; in a folder all.",
    )
    output: Path | None = setting(
        None,
        "Where the page goes: a file that ends in .html holds everything; in a folder the films lie beside it. When "
        "null, NAME.html here. Without --html: an .rrd file for rerun to open later.",
    )
    most_mb: int = setting(100, "How large the page may become, in MB; films in a folder do not count.")

    def __post_init__(self) -> None:
        at_least("most_mb", self.most_mb, 1)
        if not self.html and self.output is not None and self.output.suffix != ".rrd":
            raise ConfigError(
                f"--output={self.output}: without --html it is for rerun and ends in .rrd. For a page add --html."
            )


@command(VizConfig, USAGE)
def run(config: VizConfig) -> None:
    """Write the page and print its path, or open rerun."""
    if not config.html:
        from smolact.datasets.viz_rerun import import_rerun

        import_rerun()  # raises before a dataset is downloaded
    folder = dataset_folder(config.dataset)

    from smolact.datasets.depth import depth_notice
    from smolact.datasets.metadata import LeRobotDatasetMetadata

    meta = LeRobotDatasetMetadata(folder)
    total, depth_message = meta.total_episodes, depth_notice(meta)
    if depth_message is not None:
        logger.info("%s", depth_message)
    output = config.output or (Path(f"{folder.resolve().name}.html") if config.html else None)
    is_folder = output is not None and output.suffix not in (".html", ".rrd")
    episodes = chosen_episodes(config.episodes or (":" if is_folder else f":{DEFAULT_EPISODES}"), total)
    with stages() as progress:
        if not config.html:
            from smolact.datasets.viz_rerun import show_in_rerun

            show_in_rerun(folder, episodes, output, progress)
            if output is not None:
                sys.stdout.write(f"{output}\n")
            return
        from smolact.datasets.viz import write_page

        page = write_page(folder, output or Path(), episodes, config.most_mb, progress)
    rest = "" if len(episodes) == total else f" ({len(episodes)} of {total} episodes; others: --episodes)"
    sys.stdout.write(f"{page}{rest}\n")


def chosen_episodes(text: str, total: int) -> list[int]:
    """Parse `--episodes` to unique episodes in order: numbers and ranges `first:end` (end excluded).

    Raises:
        ConfigError: the text is malformed, or the dataset has no such episode.
    """
    chosen: list[int] = []
    for part in text.strip("[] ").split(","):
        match = re.fullmatch(r"\s*(\d*)\s*(:?)\s*(\d*)\s*", part)
        if not match or not (match[1] or match[2]):
            raise ConfigError(
                f"--episodes={text}: expected numbers and ranges, such as 3 or 0:10 or 1,4,7:9."
            )
        first = int(match[1] or 0)
        end = min(int(match[3] or total), total) if match[2] else first + 1
        if first >= total or end <= first:
            raise ConfigError(
                f"--episodes={text}: the dataset has {total} episodes, numbered from 0; {part.strip()} names none of them."
            )
        chosen += range(first, end)
    return list(dict.fromkeys(chosen))

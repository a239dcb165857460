"""`smolact dataset COMMAND …`: the commands on datasets; those that write a new one are in one module."""

from __future__ import annotations

from collections.abc import Sequence

from smolact.cli.main import Command, by_name, run_group

_STATE, _EDITS = "smolact.cli.dataset_state", "smolact.cli.dataset_edits"
COMMANDS = by_name(
    Command("info", "how much there is, of what, in which form", _STATE, function="info"),
    Command("check", "everything that training relies on, a line a fault", _STATE, function="check"),
    Command("repair", "what a crash left becomes whole again", _STATE, function="repair"),
    Command("delete", "the dataset without some of its episodes", _EDITS, function="delete"),
    Command(
        "filter", "the episodes whose task, length or outcome is as asked", _EDITS, function="filter_episodes"
    ),
    Command("split", "several datasets of one", _EDITS, function="split"),
    Command("merge", "one dataset of several", _EDITS, function="merge"),
    Command("rename-task", "another text for an instruction", _EDITS, function="rename_task"),
    Command(
        "remove-feature",
        "the dataset without some of its cameras or columns",
        _EDITS,
        function="remove_feature",
    ),
    Command("compact", "many small files become few", _EDITS, function="compact"),
    Command("stats", "all statistics, computed again from the frames", _EDITS, function="stats"),
    Command("convert", "another version; images to video and back", _EDITS, function="convert"),
    Command(
        "make-demos",
        "an environment's scripted expert shows how it is done",
        "smolact.cli.dataset_make_demos",
    ),
    Command(
        "encode",
        "what the frozen vision tower sees (or the pictures), kept ahead of a training",
        "smolact.cli.dataset_encode",
    ),
    Command("viz", "look at episodes: a page for the browser, or rerun", "smolact.cli.dataset_viz"),
    Command(
        "preview-transforms",
        "a picture of what training's random image changes do to a dataset's cameras",
        "smolact.cli.dataset_preview_transforms",
    ),
)


def run(argv: Sequence[str]) -> int:
    """Run one of the commands, or list them."""
    return run_group("dataset", "Look at a dataset, check it, change it.", COMMANDS, argv)

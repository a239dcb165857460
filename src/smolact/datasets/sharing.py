"""Select the files of a dataset to publish: its episodes, its metadata and a card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from smolact.cards import CARD, card, is_unedited
from smolact.datasets.format import DEFAULT_FEATURES, flat_names
from smolact.datasets.inspection import check_dataset
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.path_checks import check_confined
from smolact.errors import DatasetError
from smolact.uploads import Upload

_OWNED = ("data/**", "videos/**", "meta/**")


def dataset_upload(
    root: Path, *, name: str | None = None, license: str | None = None, tags: Sequence[str] | None = None
) -> Upload:
    """The upload of the dataset in `root`, tagged with its format version, as LeRobot requires.

    The card is regenerated unless a user has edited it.

    Args:
        name: its id on the Hub, for the card.
        license: the Hub's name of a licence, such as apache-2.0.
        tags: further tags of the card.

    Raises:
        NotFoundError: there is no such folder.
        DatasetError: the dataset is damaged or has no episodes, or its card is a link out of its folder.
    """
    faults = check_dataset(root, quick=True)
    errors = [fault for fault in faults if fault.severity == "error"]
    if errors:
        raise DatasetError(
            f"{root} is damaged, and nobody could use it ({len(errors)} faults): {errors[0].location}: {errors[0].message} "
            f"See them all: smolact dataset check --dataset.root={root}"
        )
    meta = LeRobotDatasetMetadata(root)
    if not meta.total_episodes:
        raise DatasetError(f"{root} has no episodes yet, so there is nothing to publish. Record some.")
    meta_files = {
        path.relative_to(root).as_posix()
        for path in (root / "meta").rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(root).parts)
    }
    files: dict[str, Path | bytes] = {
        file: root / file for file in sorted(meta.episodes.files() | meta_files)
    }
    notes = [str(fault) for fault in faults]
    check_confined(root, (CARD,))
    earlier = (root / CARD).read_text(encoding="utf-8") if (root / CARD).is_file() else None
    if earlier is not None and not is_unedited(earlier):
        notes.append(f"{CARD} is yours, and published as it is")
        files[CARD] = earlier.encode()
    else:
        files[CARD] = dataset_card(meta, name=name, license=license, tags=tags or ()).encode()
    return Upload("dataset", files, _OWNED, tag=meta.codebase_version, notes=tuple(notes))


def dataset_card(
    meta: LeRobotDatasetMetadata,
    *,
    name: str | None = None,
    license: str | None = None,
    tags: Sequence[str] = (),
) -> str:
    """The text of a dataset's `README.md`."""
    return card(
        "dataset_card.md.jinja",
        {
            "license": license,
            "task_categories": ["robotics"],
            "tags": list(dict.fromkeys(["LeRobot", *([meta.robot_type] if meta.robot_type else []), *tags])),
            "configs": [{"config_name": "default", "data_files": "data/*/*.parquet"}],
        },
        title=(name or meta.root.resolve().name).rpartition("/")[2],
        dataset=name or "FOLDER",
        meta=meta,
        features={key: value for key, value in meta.features.items() if key not in DEFAULT_FEATURES},
        flat_names=flat_names,
    )

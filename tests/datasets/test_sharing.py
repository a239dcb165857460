"""A dataset that is published: whole, tagged with its version, and the same when it is fetched."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from smolact.cards import CARD
from smolact.datasets.reader import LeRobotDataset
from smolact.datasets.sharing import dataset_upload
from smolact.datasets.writer import DatasetWriter
from smolact.errors import DatasetError, NotFoundError
from smolact.uploads import publish
from tests.datasets.make import features, write
from tests.hub_standin import THEIRS, StandIn

V21 = Path(__file__).parents[1] / "parity/data/dataset_v21"

pytestmark = THEIRS


def card_of(root: Path, **options: Any) -> str:
    content = dataset_upload(root, **options).files[CARD]
    assert isinstance(content, bytes)
    return content.decode()


@pytest.mark.parametrize("dtype", ["video", "image"])
def test_it_is_the_same_dataset_when_it_is_fetched(hub: StandIn, tmp_path: Path, dtype: str) -> None:
    root = write(tmp_path / "set", (3, 2), dtype=dtype, robot_type="so101")
    publish(dataset_upload(root, name="me/set", license="mit"), "me/set")
    repository = hub.dataset("me/set")
    assert repository.tags == {"v3.0": repository.branches["main"]}
    here, there = LeRobotDataset(root), LeRobotDataset("me/set")
    assert there.meta.root != here.meta.root
    assert len(there) == len(here) == 5
    for number in range(5):
        for key, value in here[number].items():
            same = (
                torch.equal(value, there[number][key])
                if torch.is_tensor(value)
                else value == there[number][key]
            )
            assert same, key


def test_an_old_version_has_its_own_tag(hub: StandIn) -> None:
    publish(dataset_upload(V21), "me/old")
    assert set(hub.dataset("me/old").tags) == {"v2.1"}


def test_episodes_that_were_taken_out_are_gone_there_too(hub: StandIn, tmp_path: Path) -> None:
    publish(dataset_upload(write(tmp_path / "set", (3, 2))), "me/set")
    hub.dataset("me/set").files["data/chunk-000/file-007.parquet"] = b"of an episode that was deleted"
    publish(dataset_upload(tmp_path / "set"), "me/set")
    assert "data/chunk-000/file-000.parquet" in hub.dataset("me/set").files
    assert "data/chunk-000/file-007.parquet" not in hub.dataset("me/set").files


def test_only_what_belongs_to_the_dataset_goes(tmp_path: Path) -> None:
    root = write(tmp_path / "set", (3,))
    for place in ("notes.txt", "images/a.png", "meta/.tmp-1-x", "data/chunk-000/stray.parquet"):
        (root / place).parent.mkdir(exist_ok=True)
        (root / place).write_bytes(b"x")
    upload = dataset_upload(root)
    assert all(name.startswith(("data/", "meta/", "videos/")) or name == CARD for name in upload.files)
    assert not [name for name in upload.files if "stray" in name or ".tmp" in name]
    assert any("stray.parquet" in note for note in upload.notes)


def test_the_card_says_what_is_in_it(tmp_path: Path) -> None:
    root = write(tmp_path / "set", (3, 2), robot_type="so101")
    card = card_of(root, name="me/set", license="mit", tags=["blocks"])
    head = yaml.safe_load(card.split("---\n")[1])
    assert head == {
        "license": "mit",
        "task_categories": ["robotics"],
        "tags": ["LeRobot", "so101", "blocks"],
        "configs": [{"config_name": "default", "data_files": "data/*/*.parquet"}],
    }
    for part in (
        "# set",
        "| episodes | 2 |",
        "| frames | 5 (",
        "| format | LeRobotDataset v3.0 |",
        "- Push the red block.\n- Put it on the plate.",
        "| `observation.state` | float32 | 4 | a, b, c, d |",
        "| `observation.images.top` | video | 32 × 48 × 3 |",
        'LeRobotDataset("me/set")',
    ):
        assert part in card, part
    (root / CARD).write_text(card.replace("# set", "# My set"))
    assert "# My set" in card_of(root, name="me/else") and "me/else" not in card_of(root, name="me/else")


def test_what_is_damaged_or_empty_is_not_published(tmp_path: Path) -> None:
    root = write(tmp_path / "set", (3, 2))
    shutil.rmtree(root / "videos")
    with pytest.raises(DatasetError, match=r"is damaged.*smolact dataset check"):
        dataset_upload(root)
    with DatasetWriter.create(tmp_path / "empty", fps=10, features=features()):
        pass
    with pytest.raises(DatasetError, match="no episodes yet"):
        dataset_upload(tmp_path / "empty")
    with pytest.raises(NotFoundError):
        dataset_upload(tmp_path / "nowhere")

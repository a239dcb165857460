"""What leads out of a dataset's folder, and what is no regular file, is neither read nor written, by any command."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from smolact.cli.main import main
from smolact.datasets.format import read_json, read_json_lines
from smolact.datasets.inspection import check_dataset
from smolact.datasets.reader import LeRobotDataset
from smolact.datasets.remux import PacketIndex
from smolact.datasets.repair import repair
from smolact.datasets.store import FrameStore
from smolact.datasets.tables import open_parquet
from smolact.datasets.video import VideoReader
from smolact.datasets.writer import DatasetWriter
from smolact.errors import ConfigError, DatasetError, WriteError
from smolact.hub import find_folder
from smolact.training.tracking import MetricsFile
from tests.datasets.damages import contents
from tests.datasets.fuzz import watching
from tests.datasets.make import record, write
from tests.hub_standin import THEIRS, StandIn
from tests.test_files import close

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs links and pipes")

DATA = "data/chunk-000/file-000.parquet"
VIDEO = "videos/observation.images.top/chunk-000/file-000.mp4"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("whole") / "set", video_codec="h264")


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "set"))


def lead_out(root: Path, place: str) -> Path:
    outside = root.parent / "outside" / Path(place).name
    outside.parent.mkdir(exist_ok=True)
    shutil.move(root / place, outside)
    (root / place).symlink_to(outside)
    return outside


PLACES = [
    "meta",
    "meta/info.json",
    "meta/episodes/chunk-000",
    "data",
    "data/chunk-000",
    DATA,
    "videos",
    VIDEO,
]
COMMANDS = [
    "dataset info --dataset.root=SET",
    "dataset check --dataset.root=SET",
    "dataset compact --dataset.root=SET",
    "dataset compact --dataset.root=SET --output=NEW",
    "dataset delete --dataset.root=SET --episodes=[0]",
    "dataset filter --dataset.root=SET --success=true",
    "dataset split --dataset.root=SET '--parts={a: 0.5}' --output=NEW",
    "dataset merge '--datasets=[SET, OTHER]' --output=NEW",
    "dataset merge '--datasets=[OTHER, SET]' --output=NEW",
    "dataset convert --dataset.root=SET --version=v2.1 --output=NEW",
    "dataset stats --dataset.root=SET",
    "dataset rename-task --dataset.root=SET --old=a --new=b",
    "dataset remove-feature --dataset.root=SET --features=[action]",
    "dataset viz --dataset.root=SET --html --output=NEW/page.html",
    "dataset encode --dataset.root=SET --policy.type=smolvla --policy.vlm_model_name=tiny",
    "dataset preview-transforms --dataset.root=SET --output=NEW/a.png",
    "train --dataset.root=SET --policy.type=smolvla --policy.vlm_model_name=tiny --output_dir=NEW",
    "replay --robot.type=sim --robot.env=tabletop --dataset.root=SET",
    "record --resume --robot.type=sim --robot.env=tabletop --teleop.type=expert --dataset.root=SET",
    "push SET me/x --dry-run",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_follows_a_link_out_of_the_folder(
    root: Path, whole: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in ("data/chunk-000", "meta/info.json", VIDEO):
        shutil.rmtree(root)
        shutil.copytree(whole, root)
        lead_out(root, place)
        before = contents(tmp_path)
        names = {"SET": str(root), "OTHER": str(whole), "NEW": str(tmp_path / "new")}
        words = shlex.split(command)
        for name, value in names.items():
            words = [word.replace(name, value) for word in words]
        assert main(words) == 1
        shown = capsys.readouterr()
        assert "leads out of the folder" in shown.out + shown.err
        assert contents(tmp_path) == before


@pytest.mark.parametrize("place", PLACES)
def test_what_leads_out_is_named_and_not_opened(root: Path, tmp_path: Path, place: str) -> None:
    outside = lead_out(root, place)
    with watching(root, tmp_path / "made/new"):
        (fault,) = check_dataset(root)
        with pytest.raises(DatasetError, match="leads out of the folder"):
            LeRobotDataset(root)
    assert fault.location == place and str(outside) in fault.message
    (root / place).unlink()
    shutil.move(outside, root / place)  # what the message says to do
    assert check_dataset(root) == []


@pytest.mark.parametrize("place", [DATA, VIDEO, "meta/info.json", "meta/tasks.parquet", "meta/note"])
def test_a_pipe_is_named_and_not_opened(root: Path, place: str) -> None:
    (root / place).unlink(missing_ok=True)
    os.mkfifo(root / place)
    (fault,) = check_dataset(root)
    assert fault.location == place and "is a pipe (FIFO), no regular file" in fault.message
    with pytest.raises(DatasetError, match="no regular file"):
        DatasetWriter.resume(root)


@pytest.mark.parametrize("place", ["meta", "data/chunk-000", "videos"])
def test_a_folder_that_can_not_be_read_is_named(
    root: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    close(root / place, monkeypatch)
    (fault,) = check_dataset(root)
    assert fault.location == place
    assert fault.message.startswith("can't be read (Permission denied), and such files are neither read nor")
    assert "put the file or folder itself there, readable for you" in fault.message
    for opens in (LeRobotDataset, DatasetWriter.resume, repair):
        with pytest.raises(DatasetError, match=rf"{place} can't be read \(Permission denied\)"):
            opens(root)  # type: ignore[operator]


def test_a_pipe_is_never_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "file"
    os.mkfifo(path)
    for look in (VideoReader, PacketIndex, open_parquet, read_json, read_json_lines):
        with pytest.raises(DatasetError, match="only regular files are opened"):
            look(path)  # type: ignore[operator]
    os.mkfifo(tmp_path / "top.arrays")
    with pytest.raises(WriteError, match="only regular files are opened"):
        FrameStore(tmp_path, "top", (3,), "uint8", 2)
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(WriteError, match="only regular files are opened"):
        MetricsFile(tmp_path)


def test_links_that_stay_inside_and_a_root_that_is_a_link_are_read(root: Path, tmp_path: Path) -> None:
    (root / "data").rename(root / "rows")
    (root / "data").symlink_to("rows")
    (root / VIDEO).rename(root / "film.mp4")
    (root / VIDEO).symlink_to(root / "film.mp4")
    (tmp_path / "mine").symlink_to(root)
    assert check_dataset(tmp_path / "mine") == []
    assert LeRobotDataset(tmp_path / "mine").num_frames == 16


def test_what_an_inner_link_leads_to_is_looked_at_too(root: Path) -> None:
    (root / "data").rename(root / "rows")
    (root / "data").symlink_to("rows")
    (root / "rows/chunk-000/file-001.parquet").unlink()
    os.mkfifo(root / "rows/chunk-000/file-001.parquet")
    with pytest.raises(DatasetError, match="no regular file"):
        LeRobotDataset(root)


def test_recording_does_not_go_on_through_a_link(root: Path, tmp_path: Path) -> None:
    """Of two names of one folder, the second file would take the first one's place."""
    (root / "data/chunk-001").symlink_to("chunk-000")
    before = contents(root)
    with pytest.raises(DatasetError, match=f"dataset compact --dataset.root={root}"):
        DatasetWriter.resume(root)
    assert contents(root) == before
    assert main(["dataset", "compact", f"--dataset.root={root}"]) == 0  # the hint
    with DatasetWriter.resume(root) as writer:
        record(writer, 3, 4)
    assert LeRobotDataset(root).num_episodes == 4


def test_a_beginning_that_is_a_link_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/.tmp-000000000000-info.json").write_text("theirs")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/meta").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="not empty"):
        write(tmp_path / "set", (2,), "image")
    assert (tmp_path / "elsewhere/.tmp-000000000000-info.json").read_text() == "theirs"


def test_repair_moves_nothing_that_is_outside(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in ("data", "videos/observation.images.top"):
        outside = lead_out(root, place)
        before = contents(outside)
        assert main(["dataset", "repair", f"--dataset.root={root}"]) == 1
        assert "leads out of the folder" in capsys.readouterr().err
        assert contents(outside) == before
        (root / place).unlink()
        shutil.move(outside, root / place)


def test_what_an_edit_takes_along_is_the_datasets_own(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/key").write_text("secret")
    (root / "README.md").symlink_to(tmp_path / "secret/key")
    (root / "notes").symlink_to(tmp_path / "secret")
    (root / "more").mkdir()
    (root / "more/own.txt").write_text("own")
    os.mkfifo(root / "more/pipe")
    os.mkfifo(root / "pipe")
    assert main(["dataset", "compact", f"--dataset.root={root}"]) == 0
    assert (root / "more/own.txt").read_text() == "own"
    assert (root / "README.md").is_symlink() and (
        root / "notes"
    ).is_symlink()  # as links: they are the user's
    assert not any((root / name).exists() for name in ("pipe", "more/pipe"))
    assert (tmp_path / "secret/key").read_text() == "secret"
    told = [record.getMessage() for record in caplog.records if "not taken along" in record.getMessage()]
    assert len(told) == 2
    assert main(["dataset", "compact", f"--dataset.root={root}", f"--output={tmp_path / 'new'}"]) == 0
    assert all((tmp_path / "new" / name).is_symlink() for name in ("README.md", "notes"))


def test_a_card_that_is_a_link_out_is_not_published(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "secret").write_text("secret")
    (root / "README.md").symlink_to(tmp_path / "secret")
    assert main(["push", str(root), "me/x", "--dry-run"]) == 1
    shown = capsys.readouterr()
    assert "README.md leads out of the folder" in shown.err and "secret\n" not in shown.out


@THEIRS
def test_what_comes_from_the_hub_is_read_and_not_recorded_into(hub: StandIn, root: Path) -> None:
    assert main(["push", str(root), "me/x"]) == 0
    dataset = LeRobotDataset("me/x")
    folder = find_folder("me/x", "dataset")
    assert (folder / DATA).is_symlink() and dataset.num_frames == 16
    assert check_dataset(folder) == []
    put: Callable[[Path], object] = DatasetWriter.resume
    with pytest.raises(ConfigError, match="Hub's cache"):
        put(folder)
    (folder / "meta/more.json").symlink_to(folder.parents[2] / "elsewhere")
    (folder.parents[2] / "elsewhere").write_text("{}")
    with pytest.raises(DatasetError, match="leads out of the folder"):
        LeRobotDataset("me/x")

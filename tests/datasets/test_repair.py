"""What a crash left becomes whole: every episode that is wholly there, nothing deleted, whenever it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import pyarrow as pa
import pytest

from smolact.datasets import edit
from smolact.datasets.inspection import check_dataset
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.reader import LeRobotDataset
from smolact.datasets.repair import repair
from smolact.datasets.rewrite import replace
from smolact.datasets.sources import Source
from smolact.datasets.writer import DatasetWriter
from smolact.errors import ConfigError, DatasetError, NotFoundError
from tests.datasets.damages import (
    DAMAGES,
    LENGTHS,
    change,
    contents,
    copy,
    count,
    die_as_lerobot,
    has_the_episodes,
    make_seeds,
    without_footer,
)
from tests.datasets.make import TASKS, record
from tests.datasets.test_writer import at_each_step

PARITY = Path(__file__).parent.parent / "parity/data"
TOP = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_seeds(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("name", ["video", "joined", "image"])
def test_nothing_is_done_to_a_whole_dataset(whole: dict[str, Path], tmp_path: Path, name: str) -> None:
    root = copy(whole[name], tmp_path / "set")
    done = repair(root)
    assert (done.needed, done.episodes, done.frames, done.files, done.errors) == (False, 3, 9, 0, ())
    assert contents(tmp_path / "set") == contents(whole[name])


def test_nothing_is_done_to_what_lerobot_made(tmp_path: Path) -> None:
    root = copy(PARITY / "dataset_v30", tmp_path / "set")
    assert not repair(root).needed
    assert contents(root) == contents(PARITY / "dataset_v30")


@pytest.mark.parametrize(("name", "damage", "episodes", "anew"), DAMAGES)
def test_every_whole_episode_is_kept_and_nothing_is_deleted(
    whole: dict[str, Path],
    tmp_path: Path,
    name: str,
    damage: Callable[[Path], object],
    episodes: list[int],
    anew: bool,
) -> None:
    root = copy(whole[name], tmp_path / "set")
    damage(root)
    before = contents(root)
    looked = repair(root, dry_run=True)
    assert contents(root) == before
    done = repair(root)
    assert (looked.episodes, looked.files, looked.rewritten) == (len(episodes), done.files, anew)
    assert (done.episodes, done.frames) == (len(episodes), sum(LENGTHS[number] for number in episodes))
    has_the_episodes(root, whole[name], episodes)
    kept = list(contents(tmp_path).values())
    assert all(data in kept for data in before.values())
    assert not repair(root).needed
    with DatasetWriter.resume(root) as writer:
        record(writer, 1, 2)
    assert LeRobotDatasetMetadata(root).total_episodes == len(episodes) + 1


def gap(root: Path) -> None:
    """One action of episode 1 is lost, in a file of all three."""

    def lose(table: pa.Table) -> pa.Table:
        actions = table.column("action").to_pylist()
        column = pa.array([None if row == 4 else value for row, value in enumerate(actions)])
        return table.set_column(table.schema.get_field_index("action"), "action", column)

    change(root / "data/chunk-000/file-000.parquet", lose)


def damaged_middle(root: Path) -> None:
    """Zeros for the first frame of episode 1, which the file's index still finds."""
    path = root / "videos/observation.images.top/chunk-000/file-000.mp4"
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][LENGTHS[0]]
        first, size = packet.pos, packet.size
    content = bytearray(path.read_bytes())
    content[first : first + size] = bytes(size)
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [gap, damaged_middle])
def test_damage_in_a_file_of_several_episodes_costs_only_its_own(
    whole: dict[str, Path], tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    root = copy(whole["joined"], tmp_path / "set")
    damage(root)
    done = repair(root)
    assert (done.episodes, done.rewritten) == (2, True)
    assert len(done.errors) == 1 and done.errors[0].endswith("This affects episode 1.")
    has_the_episodes(root, whole["joined"], [0, 2])


def test_a_new_instruction_is_learned_from_the_episode(tmp_path: Path, whole: dict[str, Path]) -> None:
    """Killed between the episode's row and the list of tasks: the last thing but the counts."""
    root = copy(whole["image"], tmp_path / "set")
    path = root / "meta/tasks.parquet"
    change(path, lambda table: table.slice(0, 1))
    count(root, total_episodes=1, total_frames=3, total_tasks=1)
    assert repair(root).episodes == 3
    assert LeRobotDatasetMetadata(root).tasks == dict(enumerate(TASKS))


def test_a_kill_while_repairing_loses_nothing(
    whole: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is on disk at each step is what a kill there leaves: another repair goes on from it."""
    for place, (damage, episodes) in enumerate(
        [
            (die_as_lerobot, [0, 1]),
            (lambda root: without_footer(root / "data/chunk-000/file-001.parquet"), [0, 2]),
        ]
    ):
        here, copies = tmp_path / str(place), list[Path]()
        damage(copy(whole["video" if place == 0 else "image"], here / "set"))

        def keep(_step: int, here: Path = here, copies: list[Path] = copies) -> None:
            copies.append(here.with_name(f"{here.name}-{len(copies)}"))
            copy(here, copies[-1])

        with pytest.MonkeyPatch.context() as patch:
            at_each_step(patch, keep)
            repair(here / "set", quick=True)
        assert len(copies) > 10
        for number, one in enumerate(copies):
            if place == 1 and number % 5 and (one / "set").exists():
                continue  # most steps only write the new folder, of which nobody knows
            repair(one / "set", quick=True)
            has_the_episodes(one / "set", whole["video" if place == 0 else "image"], episodes)
            assert not repair(one / "set", quick=True).needed


def test_an_edit_killed_between_its_renames_is_named_and_mended(
    whole: dict[str, Path], tmp_path: Path
) -> None:
    root = tmp_path / "set"
    copy(whole["image"], tmp_path / "set.replaced")
    for opens in (LeRobotDataset, LeRobotDatasetMetadata, check_dataset, DatasetWriter.resume):
        with pytest.raises(
            NotFoundError, match=r"set\.replaced does.*smolact dataset repair --dataset\.root="
        ):
            opens(root)
    with pytest.raises(NotFoundError, match=r"set\.replaced does"):
        DatasetWriter.create(root, fps=10, features={"action": {"dtype": "float32", "shape": (2,)}})
    assert repair(root, dry_run=True).restored and not root.exists()
    assert repair(root).restored
    assert contents(root) == contents(whole["image"])


def test_an_edit_killed_at_its_end_leaves_the_old_dataset_which_is_put_aside(
    whole: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = copy(whole["image"], tmp_path / "set")
    copy(whole["image"], tmp_path / "set.replaced")
    (tmp_path / ".tmp-0123456789ab-set").mkdir()
    (tmp_path / ".tmp-0123456789ab-other-set").mkdir()
    with pytest.raises(ConfigError, match="smolact dataset repair"):
        replace(edit.all_episodes(Source(root)))
    assert repair(root).folders == (tmp_path / "set.aside-001",)
    assert contents(tmp_path / "set.aside-001") == contents(whole["image"])
    caplog.clear()
    replace(edit.all_episodes(Source(root)), quick=True)
    assert ".tmp-0123456789ab-set" in caplog.text and "other" not in caplog.text


def test_what_can_not_be_repaired_is_named(whole: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        repair(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"version v2\.1"):
        repair(PARITY / "dataset_v21")
    root = copy(whole["image"], tmp_path / "set")
    (root / "meta/info.json").write_text("{")
    with pytest.raises(DatasetError, match="not valid JSON"):
        repair(root)


def test_what_leads_out_of_the_folder_is_not_opened(whole: dict[str, Path], tmp_path: Path) -> None:
    root = copy(whole["image"], tmp_path / "set")
    path = root / "data/chunk-000/file-002.parquet"
    path.rename(tmp_path / "outside.parquet")
    path.symlink_to(tmp_path / "outside.parquet")
    done = repair(root)
    assert done.episodes == 2 and "leads out" in done.errors[0]
    assert (tmp_path / "outside.parquet").is_file()


CHILD = """
import os, signal, sys
from pathlib import Path
from smolact.datasets import edit
from smolact.datasets.repair import repair
from smolact.datasets.rewrite import replace
from smolact.datasets.sources import Source

done = 0

def dying(call):
    def counted(*arguments, **options):
        global done
        if done == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
        done += 1
        return call(*arguments, **options)
    return counted

for name in ("rename", "replace", "fsync", "rmdir", "unlink"):
    setattr(os, name, dying(getattr(os, name)))
root = Path(sys.argv[2])
if sys.argv[1] == "replace":
    replace(edit.delete_episodes(Source(root), [1]), quick=True)
else:
    repair(root, quick=True)
print(done)
"""


def run_and_die(work: str, root: Path, after: int) -> int | None:
    """How many operations of files it made; None when it was killed before it was done."""
    environment = {**os.environ, "PYTHONPATH": str(TOP / "src")}
    command = [sys.executable, "-c", CHILD, work, str(root), str(after)]
    ran = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert ran.returncode in (0, -signal.SIGKILL), ran.stderr.decode()
    return int(ran.stdout) if ran.returncode == 0 else None


@pytest.mark.parametrize("work", ["replace", "repair"])
def test_killed_between_its_operations_no_episode_is_lost(
    whole: dict[str, Path], tmp_path: Path, work: str
) -> None:
    def damaged(name: str) -> Path:
        root = copy(whole["image"], tmp_path / name / "set")
        if work == "repair":
            without_footer(root / "data/chunk-000/file-001.parquet")
        return root

    operations = run_and_die(work, damaged("whole"), -1)
    assert operations
    for after in {0, operations // 3, operations // 2, operations - 1}:
        root = damaged(f"after {after}")
        assert run_and_die(work, root, after) is None
        done = repair(root, quick=True)
        has_the_episodes(root, whole["image"], [0, 2] if done.episodes == 2 else [0, 1, 2])
        assert done.episodes == 2 or work == "replace"

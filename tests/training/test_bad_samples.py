"""A frame that can't be read ends no run that has begun: another takes its place, the same one wherever the run goes on."""

from __future__ import annotations

import gc
import json
import logging
import shutil
from pathlib import Path

import av
import pytest
from safetensors.torch import load_file

from smolact.cli.main import main
from smolact.cli.train import read_settings
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.reader import LeRobotDataset
from smolact.errors import ConfigError, DatasetError, TrainingError
from smolact.training.checkpoint import read_progress
from smolact.training.run_folder import find_checkpoint
from smolact.training.run_inputs import encode
from smolact.training.sources import split_episodes
from smolact.training.stream import BLOCK, Mixture, ShuffledEpochs
from smolact.training.tracking import Ended, Event, Measured, Saved, Stepped
from smolact.training.train import train
from tests.datasets import make
from tests.training.runs import DATASET, QUICK, SMALL, Recorder, plain_settings
from tests.training.test_processes import FROZEN as FOUR_STEPS
from tests.training.test_processes import check_same, run_two

CAMERA = "observation.images.top"
SEED = 5
FRAMES = 63
FROZEN = (
    "--policy.train_expert_only=true",
    "--policy.freeze_vision_encoder=true",
    "--policy.allow_frozen_random=true",
)


def damage(root: Path, frame: int, camera: str = CAMERA) -> Path:
    """Overwrite the packet of a frame in the one video of a camera; those that need it can't be decoded either."""
    path = root / LeRobotDatasetMetadata(root).episodes.video_path[camera][0]
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    position, size = packets[frame]
    data = bytearray(path.read_bytes())
    data[position : position + size] = b"\xff" * size
    path.write_bytes(bytes(data))
    return path


def undamaged(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DATASET, tmp_path / "set"))


def position_of(frame: int) -> int:
    """Where a frame comes in the first epoch."""
    order = ShuffledEpochs(range(FRAMES), SEED)
    return next(position for position in range(FRAMES) if order.frame(position) == frame)


def late_frame(first: int, last: int) -> int:
    """A frame that begins a group of two, both of which come between these positions."""
    return next(
        frame
        for frame in range(0, FRAMES - 1, 2)
        if all(first <= position_of(one) < last for one in (frame, frame + 1))
    )


def run(root: Path, output: Path, *argv: str) -> tuple[Ended, Recorder]:
    flags = [*SMALL, *FROZEN, *QUICK, f"--seed={SEED}", f"--output_dir={output}", *argv]
    config = plain_settings(f"--dataset.root={root}", *flags)
    recorder = Recorder()
    return train(config, listeners=[recorder]), recorder


def resume(output: Path, *argv: str) -> tuple[Ended, Recorder]:
    config = read_settings(["--resume=true", f"--output_dir={output}", *argv])
    recorder = Recorder()
    return train(config, listeners=[recorder]), recorder


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with two frames that can't be read; a run of batches of two meets them in its steps 4 to 8."""
    root = undamaged(tmp_path_factory.mktemp("broken"))
    damage(root, late_frame(6, 16))
    return root


@pytest.fixture(scope="module")
def straight(broken: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recorder]:
    folder = tmp_path_factory.mktemp("straight") / "run"
    _, recorder = run(broken, folder, "--steps=10", "--save_freq=5")
    return folder, recorder


def same_weights(one: Path, other: Path) -> bool:
    ours, theirs = (
        load_file(find_checkpoint(run) / "pretrained_model/model.safetensors") for run in (one, other)
    )
    return all(ours[name].equal(theirs[name]) for name in theirs)


def test_the_dataset_has_two_frames_that_cannot_be_read(broken: Path) -> None:
    dataset, frame = LeRobotDataset(broken), late_frame(6, 16)
    bad = []
    for index in range(len(dataset)):
        try:
            dataset[index]
        except DatasetError as error:
            bad.append(index)
            assert CAMERA in str(error)
    assert bad == [frame, frame + 1]


def test_a_frame_found_late_is_left_out_counted_and_named_once(
    broken: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        ended, recorder = run(
            broken, tmp_path / "run", "--steps=40"
        )  # more than one epoch: each comes up again
    assert ended.is_complete
    counts = [event.metrics.get("bad_samples") for event in recorder.of(Measured)]
    assert (counts[2], counts[7], counts[-1]) == (None, 2, 2)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["bad_samples"] == 2
    said = [record.getMessage() for record in caplog.records if "can't be read" in record.getMessage()]
    assert len(said) == 2
    dataset, frame = LeRobotDataset(broken), late_frame(6, 16)
    place = dataset.unreadable(frame, DatasetError("")).location
    assert sum(place in line and CAMERA in line and ".mp4" in line for line in said) == 1
    (last,) = [
        record.getMessage() for record in caplog.records if "Not read in this run" in record.getMessage()
    ]
    assert place in last


def test_a_frame_found_in_the_first_step_stops_a_run_that_has_not_begun(tmp_path: Path) -> None:
    root = undamaged(tmp_path)
    frame = ShuffledEpochs(range(FRAMES), SEED).frame(1)
    damage(root, frame - frame % 2)
    with pytest.raises(DatasetError, match="has not begun") as caught:
        run(root, tmp_path / "run", "--steps=10")
    place = LeRobotDataset(root).unreadable(frame, DatasetError("")).location
    for part in (place, CAMERA, ".mp4", "dataset check", "dataset repair", "--dataset.max_bad_samples"):
        assert part in str(caught.value)
    assert not (tmp_path / "run/checkpoints").exists()
    del caught  # its traceback holds the run's dataset, and who reads a dataset keeps a repair out
    gc.collect()
    # Each way out that the message names leads somewhere.
    ended, recorder = run(root, tmp_path / "allowed", "--steps=2", "--dataset.max_bad_samples=4")
    assert ended.is_complete
    assert recorder.of(Measured)[0].metrics["bad_samples"] == 1
    assert main(["dataset", "check", f"--dataset.root={root}"]) == 1
    assert main(["dataset", "repair", f"--dataset.root={root}"]) == 0
    assert run(root, tmp_path / "mended", "--steps=2")[0].is_complete


@pytest.mark.parametrize(
    "flags",
    [
        ("--num_workers=2", "--dataloader_multiprocessing_context=fork"),
        ("--batch_size=1", "--gradient_accumulation_steps=2"),
        ("--dataset.cache=frames", "--dataset.max_bad_samples=16"),
        ("--dataset.cache=frames", "--dataset.max_bad_samples=16", "--num_workers=2"),
    ],
    ids=["workers", "accumulated", "kept", "kept by workers"],
)
def test_however_data_is_loaded_the_same_frames_take_their_places(
    broken: Path, straight: tuple[Path, Recorder], tmp_path: Path, flags: tuple[str, ...]
) -> None:
    _, recorder = run(broken, tmp_path / "run", "--steps=10", f"--cache.folder={tmp_path}", *flags)
    assert recorder.losses == pytest.approx(straight[1].losses, rel=1e-6)
    assert recorder.of(Measured)[-1].metrics["bad_samples"] == 2
    if "accumulated" not in str(flags):
        assert recorder.losses == straight[1].losses or "--batch_size=1" in flags


def test_a_resumed_run_is_the_straight_one_and_goes_on_counting(
    broken: Path, straight: tuple[Path, Recorder], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(straight[0], folder, symlinks=True)
    shutil.rmtree(folder / "checkpoints/000010")
    (folder / "checkpoints/last").unlink()
    (folder / "checkpoints/last").symlink_to("000005")
    known = json.loads((folder / "checkpoints/000005/training_state/bad_samples.json").read_text())
    assert len(known) == 1
    _, recorder = resume(folder)
    assert recorder.losses == {step: loss for step, loss in straight[1].losses.items() if step > 5}
    assert recorder.of(Measured)[-1].metrics["bad_samples"] == 2
    assert same_weights(folder, straight[0])


def test_a_run_with_too_many_stops_saved_and_goes_on_as_if_it_had_not(
    broken: Path, straight: tuple[Path, Recorder], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(TrainingError, match=r"1 may be left out \(--dataset.max_bad_samples\)") as caught:
        run(broken, folder, "--steps=10", "--dataset.max_bad_samples=1")
    checkpoint = find_checkpoint(folder)
    step = read_progress(checkpoint).step
    assert 0 < step < 10
    assert str(checkpoint) in str(caught.value)
    whole = shutil.copytree(folder, tmp_path / "again", symlinks=True)
    with pytest.raises(TrainingError, match="2 frames"):  # the count is the run's, not a session's
        resume(whole, "--steps=66")  # through the second epoch
    ended, recorder = resume(folder, "--dataset.max_bad_samples=2")
    assert ended.is_complete
    assert recorder.losses == {
        step: loss for step, loss in straight[1].losses.items() if step in recorder.losses
    }
    assert same_weights(folder, straight[0])


def test_a_run_with_too_many_goes_on_when_the_dataset_is_mended(tmp_path: Path) -> None:
    root = undamaged(tmp_path)
    video = LeRobotDatasetMetadata(root).episodes.video_path[CAMERA][0]
    damage(root, late_frame(6, 16))
    with pytest.raises(TrainingError, match="Mend the dataset"):
        run(root, tmp_path / "run", "--steps=10", "--dataset.max_bad_samples=1")
    shutil.copyfile(DATASET / video, root / video)
    assert resume(tmp_path / "run", "--steps=66")[0].is_complete


def test_none_is_left_out_where_none_may_be(broken: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="0 may be left out"):
        run(broken, tmp_path / "run", "--steps=10", "--dataset.max_bad_samples=0")
    assert find_checkpoint(tmp_path / "run")
    with pytest.raises(ConfigError, match="max_bad_samples"):
        plain_settings(f"--dataset.root={broken}", *SMALL, "--dataset.max_bad_samples=-1")


def test_what_is_kept_ahead_names_the_frame_and_stops(broken: Path, tmp_path: Path) -> None:
    frame = late_frame(6, 16)
    place = LeRobotDataset(broken).unreadable(frame, DatasetError("")).location
    for flags in (("--dataset.cache=frames",), ("--cache.features=true",)):
        for workers in ("--num_workers=0", "--num_workers=1"):
            with pytest.raises(DatasetError, match="has not begun") as caught:
                run(
                    broken,
                    tmp_path / "run",
                    "--steps=2",
                    f"--cache.folder={tmp_path / 'kept'}",
                    workers,
                    *flags,
                )
            assert place in str(caught.value)
            assert CAMERA in str(caught.value)


def test_too_many_are_refused_when_pictures_are_kept_ahead(broken: Path, tmp_path: Path) -> None:
    flags = ("--dataset.cache=frames", "--dataset.max_bad_samples=1", f"--cache.folder={tmp_path}")
    with pytest.raises(DatasetError, match="and 1 more"):
        run(broken, tmp_path / "run", "--steps=2", *flags)


def test_tokens_that_are_kept_leave_the_frame_out(
    broken: Path, straight: tuple[Path, Recorder], tmp_path: Path
) -> None:
    flags = ("--cache.features=true", "--cache.dtype=float32", f"--cache.folder={tmp_path}")
    config = plain_settings(
        f"--dataset.root={broken}",
        *SMALL,
        *FROZEN,
        *QUICK,
        f"--seed={SEED}",
        *flags,
        "--dataset.max_bad_samples=9",
    )
    encode(config)
    _, recorder = run(broken, tmp_path / "run", "--steps=10", *flags, "--dataset.max_bad_samples=9")
    assert recorder.losses == pytest.approx(straight[1].losses, rel=1e-5)
    assert recorder.of(Measured)[-1].metrics["bad_samples"] == 2


def test_a_held_out_frame_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    root = undamaged(tmp_path)
    meta = LeRobotDatasetMetadata(root)
    held = ("--dataset.eval_split=0.3", "--eval_steps=2", "--steps=4")
    _, episodes = split_episodes(list(range(meta.total_episodes)), meta, 0.3)
    first = int(meta.episodes.from_index[episodes[-1]])
    damage(root, first + first % 2 + 2)
    losses = []
    for name in ("one", "again"):
        ended, recorder = run(root, tmp_path / name, *held)
        assert ended.is_complete
        assert recorder.of(Measured)[-1].metrics["bad_samples"] == 2
        losses.append([event.metrics.get("validation_loss") for event in recorder.of(Measured)])
    assert losses[0] == losses[1]


def test_a_run_whose_videos_go_away_is_saved(tmp_path: Path) -> None:
    root = make.write(tmp_path / "set", lengths=(2,) * 30)
    videos, aside = root / "videos", tmp_path / "videos"

    class Remover(Recorder):
        def __call__(self, event: Event) -> None:
            super().__call__(event)
            if event == Stepped(2):
                videos.rename(aside)

    flags = (*SMALL, *FROZEN, *QUICK, f"--seed={SEED}", f"--output_dir={tmp_path / 'run'}", "--batch_size=1")
    config = plain_settings(f"--dataset.root={root}", *flags, "--steps=60", "--dataset.max_bad_samples=900")
    remover = Remover()
    with pytest.raises(DatasetError, match="missing"):
        train(config, listeners=[remover])
    assert remover.of(Saved)[-1].step >= 2
    aside.rename(videos)
    assert resume(tmp_path / "run")[0].is_complete


def test_substitutes_follow_from_seed_and_place_alone() -> None:
    def orders() -> Mixture:
        return Mixture([ShuffledEpochs(range(50), 1), ShuffledEpochs(range(50, 90), 1, "other")], [2, 1], 1)

    one, other = orders(), orders()
    for position in (0, 7, 3 * BLOCK, 2):
        other.frame(position + 5)
        drawn = [one.substitute(position, attempt) for attempt in range(8)]
        assert drawn == [other.substitute(position, attempt) for attempt in range(8)]
        assert len(set(drawn)) > 4
        assert {frame < 50 for frame in drawn} == {one.turn(position)[0] == 0}


def test_a_mixture_leaves_a_frame_out(broken: Path, tmp_path: Path) -> None:
    whole = undamaged(tmp_path)
    mix = f'--dataset.mix={{"{whole}": 1, "{broken}": 1}}'
    flags = [*SMALL, *FROZEN, *QUICK, f"--seed={SEED}", f"--output_dir={tmp_path / 'run'}", "--steps=80", mix]
    config = plain_settings(*flags, "--dataset.max_bad_samples=2")
    recorder = Recorder()
    assert train(config, listeners=[recorder]).is_complete
    assert recorder.of(Measured)[-1].metrics["bad_samples"] == 2


def test_two_processes_are_one_also_where_frames_cannot_be_read(tmp_path: Path) -> None:
    root = undamaged(tmp_path)
    damage(root, late_frame(4, 16))
    same = (*FOUR_STEPS, f"--seed={SEED}", f"--dataset.root={root}")
    config = plain_settings(
        *SMALL, *QUICK, *same, "--batch_size=4", f"--output_dir={tmp_path / 'alone'}", "--save_freq=2"
    )
    train(config)
    said = run_two(tmp_path / "two", *SMALL, *same, "--batch_size=2", root=root)
    check_same(tmp_path / "two", tmp_path / "alone")
    assert said.count("another frame takes its place") == 2
    counts = [
        [
            json.loads(line).get("bad_samples")
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]
        for name in ("alone", "two")
    ]
    assert counts[0] == counts[1]
    assert counts[0][-1] == 2

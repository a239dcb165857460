"""Who hears what a run tells: real event files, stand-ins for services, and trackers that fail."""

from __future__ import annotations

import errno
import io
import json
import logging
import struct
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event as Record
from tensorboardX.proto.event_pb2 import SessionLog
from tensorboardX.record_writer import masked_crc32c

from smolact.errors import MissingDependencyError, WriteError
from smolact.evaluation.metrics import EpisodeResult, EvaluationResult
from smolact.evaluation.video import write_video
from smolact.parsing import parse
from smolact.policies.smolvla.configuration_smolvla import SmolVLAConfig
from smolact.training import tensorboard
from smolact.training.config import TrainConfig, resolve, to_json
from smolact.training.saved_settings import to_dict
from smolact.training.tensorboard import TensorBoardTracker
from smolact.training.trackers import BestEffort, make_trackers
from smolact.training.tracking import (
    Ended,
    Evaluated,
    Listener,
    Measured,
    MetricsFile,
    Started,
    Stepped,
)


def records(path: Path) -> list[Any]:
    """The events of a file, each with its checksums."""
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert struct.unpack("<I", data[8:12])[0] == masked_crc32c(data[:8])
        body = data[12 : 12 + length]
        assert struct.unpack("<I", data[12 + length : 16 + length])[0] == masked_crc32c(body)
        found.append(Record.FromString(body))
        data = data[16 + length :]
    return found


def shown(run: Path) -> dict[str, dict[int, float]]:
    """The scalars that TensorBoard shows of a run: later files void the later steps of earlier ones."""
    curves: dict[str, dict[int, float]] = {}
    for path in sorted((run / "tensorboard").iterdir()):
        for record in records(path):
            if record.session_log.status == SessionLog.START:
                curves = {tag: {s: v for s, v in c.items() if s < record.step} for tag, c in curves.items()}
            for value in record.summary.value:
                if value.HasField("simple_value"):
                    curves.setdefault(value.tag, {})[record.step] = value.simple_value
    return curves


def evaluation(*videos: Path | None) -> EvaluationResult:
    episodes = tuple(
        EpisodeResult(i, i, "push", "push", True, 5, 1.0, None if video is None else str(video))
        for i, video in enumerate(videos)
    )
    return EvaluationResult(0, 4, 8, 1.0, episodes)


def config(*argv: str) -> TrainConfig:
    return parse(TrainConfig, list(argv))


def trackers(run: Path, *argv: str, step: int = 0) -> list[Listener]:
    return make_trackers(config(*argv), run, {"steps": 5}, name="job", tags=["tag"], step=step)


def test_tensorboard_gets_every_number(tmp_path: Path) -> None:
    tracker = TensorBoardTracker(tmp_path)
    tracker(Stepped(1))
    tracker(Measured(1, {"loss": 2.0, "made_up": 3.0}))
    tracker(Measured(2, {"loss": float("nan")}))
    tracker(Evaluated(2, {"success_rate": 0.5}, evaluation(None)))
    curves = shown(tmp_path)
    assert curves["train/made_up"] == {1: 3.0}
    assert curves["eval/success_rate"] == {2: 0.5}
    assert curves["train/loss"][1] == 2.0
    assert np.isnan(curves["train/loss"][2])


def test_events_are_on_the_disk_at_once(tmp_path: Path) -> None:
    tracker = TensorBoardTracker(tmp_path)
    for step in range(1, 4):
        tracker(Measured(step, {"loss": 1.0}))
        assert len(shown(tmp_path)["train/loss"]) == step


def test_a_resumed_run_voids_the_steps_that_are_done_again(tmp_path: Path) -> None:
    first = TensorBoardTracker(tmp_path)
    for step in range(1, 7):
        first(Measured(step, {"loss": float(step)}))
    again = TensorBoardTracker(tmp_path, step=3)
    again(Measured(4, {"loss": 40.0}))
    assert shown(tmp_path)["train/loss"] == {1: 1.0, 2: 2.0, 3: 3.0, 4: 40.0}


def test_tensorboard_plays_the_first_films_of_an_evaluation(tmp_path: Path) -> None:
    frames = [np.full((48, 300, 3), 3 * index, np.uint8) for index in range(70)]
    write_video(tmp_path / "film.mp4", frames, fps=10)
    film = tmp_path / "film.mp4"
    TensorBoardTracker(tmp_path)(Evaluated(9, {}, evaluation(None, film, film, film, film)))
    values = records(next((tmp_path / "tensorboard").iterdir()))[-1].summary.value
    assert [value.tag for value in values] == ["eval/episode_001", "eval/episode_002", "eval/episode_003"]
    with Image.open(io.BytesIO(values[0].image.encoded_image_string)) as picture:
        assert picture.n_frames == tensorboard.MAX_FRAMES
        assert picture.size == (192, 31) == (values[0].image.width, values[0].image.height)
        picture.seek(picture.n_frames - 1)
        assert abs(int(np.asarray(picture.convert("L")).mean()) - 207) < 4  # the film's last frame


def test_the_first_step_imports_no_tracker_that_is_off() -> None:
    code = "import sys, smolact.training.tracking; print('tensorboardX' in sys.modules, 'matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_what_is_on_by_default_and_what_is_asked_for(tmp_path: Path) -> None:
    def names(*argv: str) -> list[str]:
        return [tracker.name for tracker in trackers(tmp_path, *argv) if isinstance(tracker, BestEffort)]

    assert names() == ["TensorBoard", "The report"]
    assert names("--tensorboard.enable=false", "--report=false") == []
    assert not (tmp_path / "tensorboard").exists()  # nothing is written before there is something to write


def test_settings_of_trackers_are_ours_alone() -> None:
    policy = SmolVLAConfig()
    presets = policy.get_optimizer_preset(), policy.get_scheduler_preset()
    shared = to_json(resolve(config("--trackio.project=p")), policy, *presets)
    assert not shared.keys() & {"tensorboard", "trackio", "report"}
    saved = to_dict(config("--trackio.project=p"))
    assert saved["tensorboard.enable"] is True and saved["trackio.project"] == "p" and saved["report"] is True


def test_trackio_hears_numbers_and_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Any] = []
    run = types.SimpleNamespace(
        log=lambda numbers, step: heard.append((step, numbers)), finish=lambda: heard.append("finish")
    )
    module = types.SimpleNamespace(
        init=lambda **settings: heard.append(settings) or run, Video=lambda path: f"film {path}"
    )
    film = types.SimpleNamespace(results=[types.SimpleNamespace(index=2, video="a.mp4")])
    monkeypatch.setitem(sys.modules, "trackio", module)  # type: ignore[arg-type]
    flags = ("--trackio.enable=true", "--trackio.project=p", "--tensorboard.enable=false", "--report=false")
    (tracker,) = trackers(tmp_path / "my_run", *flags)
    for event in (
        Measured(3, {"loss": 1.0}),
        Evaluated(3, {"success_rate": 0.5}, film),
        Ended(3, None, True),
    ):
        tracker(event)
    assert heard[0] == {
        "project": "p",
        "name": "my_run",
        "space_id": None,
        "config": {"steps": 5},
        "resume": "allow",
    }
    assert heard[1:] == [
        (3, {"train/loss": 1.0}),
        (3, {"eval/success_rate": 0.5, "eval/episode_002": "film a.mp4"}),
        "finish",
    ]


@pytest.mark.parametrize("package", ["trackio", "wandb"])
def test_a_tracker_that_is_not_installed_names_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # type: ignore[arg-type]
    with pytest.raises(MissingDependencyError, match=rf"smolact\[{package}\]"):
        trackers(tmp_path, f"--{package}.enable=true")


def test_a_tracker_that_fails_is_off_after_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[int] = []

    def fail(event: Any) -> None:
        calls.append(event.step)
        raise RuntimeError("the service is gone")

    tracker = BestEffort("Somebody", fail)
    with caplog.at_level(logging.WARNING):
        for step in (1, 2, 3):
            tracker(Measured(step, {}))
    assert calls == [1]
    assert len(caplog.records) == 1
    assert "Somebody failed and is off" in caplog.text
    assert "the service is gone" in caplog.text


def test_a_full_disk_stops_tensorboard_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tensorboard").write_text("in the way: no folder can be made here")
    tracker = trackers(tmp_path, "--report=false")[0]
    with caplog.at_level(logging.WARNING):
        for step in range(1, 30):
            tracker(Measured(step, {"loss": 1.0}))
    assert caplog.text.count("TensorBoard failed") == 1


class FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_stops_the_record_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = MetricsFile(tmp_path)
    file(Measured(1, {"loss": 1.0}))
    monkeypatch.setattr(Path, "open", lambda *_, **__: FullDisk())
    with pytest.raises(WriteError, match="The disk is full"):
        file(Measured(2, {"loss": 1.0}))


def test_a_torn_line_ends_no_resume(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n\xff\xfe{"st\n')
    MetricsFile(tmp_path, 5)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'


def test_the_report_is_written_when_the_run_ends(tmp_path: Path) -> None:
    metrics, *others = [MetricsFile(tmp_path), *trackers(tmp_path, "--tensorboard.enable=false")]
    for event in (
        Started(tmp_path, 0, 5, {"dataset": "a <b> & c"}),
        Measured(3, {"loss": 1.5}),
        Ended(3, None, False),
    ):
        for listener in (metrics, *others):
            listener(event)
    page = (tmp_path / "report.html").read_text()
    assert "Stopped after 3 of 5 steps" in page
    assert "a &lt;b&gt; &amp; c" in page
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"] == 1.5

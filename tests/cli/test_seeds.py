"""Commands as guides to SmolVLA type them for LeRobot: taken word for word, and run with what the Hub would give from folders.

SmolAndFAST's command has a test of its own (`test_train_pusht.py`), and so has a policy that drives (`test_record.py`).
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from smolact.cli.main import main
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.flags import read_flags
from smolact.parsing import flattened, parse
from smolact.training.config import TrainConfig
from tests.robots.feetech_bus import MemoryPort, Motor, Motors
from tests.robots.so101_session import CALIBRATION, prepare
from tests.training.runs import DATASET

TRAIN = {
    "--policy.type=smolvla --policy.optimizer_lr=2e-4 --policy.scheduler_warmup_steps=2000 "
    "--dataset.repo_id=your_dataset": {"optimizer_lr": 2e-4, "scheduler_warmup_steps": 2000},
    "--policy.type=smolvla --batch_size=64 --dataset.repo_id=your_dataset": {},
    "--policy.type=smolvla --policy.optimizer_lr=5e-4 --batch_size=32 --dataset.repo_id=your_dataset --steps=100000": {
        "optimizer_lr": 5e-4
    },
    "--policy.type=smolvla --policy.num_vlm_layers=12 --policy.expert_width_multiplier=0.5 "
    "--policy.attention_mode=self_attn --dataset.repo_id=your_dataset": {
        "expert_width_multiplier": 0.5,
        "attention_mode": "self_attn",
    },
    "--policy.type=smolvla --policy.load_vlm_weights=False --policy.train_expert_only=False "
    "--dataset.repo_id=your_dataset": {"load_vlm_weights": False, "train_expert_only": False},
    "--policy.path=lerobot/smolvla_base --dataset.repo_id=my_user/my_task_dataset --batch_size=64 --steps=20000": {},
}
"""What follows `lerobot-train`, and what the checkpoint's configuration says then."""

SMALL = (
    "--policy.device=cpu",
    "--policy.chunk_size=4",
    "--policy.n_action_steps=4",
    "--policy.resize_imgs_with_padding=[64,64]",
)
QUICK = ("--batch_size=2", "--steps=1", "--num_workers=0", "--report=false", f"--dataset.root={DATASET}")

SHORT = ("--dataset.episode_time_s=0.3", "--dataset.num_episodes=1", "--dataset.fps=10")

LEGO = "Grasp a lego block and put it in the bin."
CUBE = "Pick up the red cube and place it in the blue box."
ARM = "--robot.type=so101_follower --robot.port=/dev/ttyACM0"
RECORD = {
    f'{ARM} --dataset.single_task="{LEGO}" --dataset.repo_id=me/my_dataset --dataset.episode_time_s=50 '
    "--dataset.num_episodes=10": LEGO,
    f'{ARM} --dataset.single_task="{LEGO}" --dataset.repo_id=me/eval_dataset --policy.path=me/FINETUNED': LEGO,
    f'--dataset.single_task="{CUBE}" --dataset.repo_id=my_user/my_task_dataset': CUBE,
    f'--dataset.single_task="{CUBE}" --policy.path=my_user/my_trained_model': CUBE,
}
"""What follows `lerobot-record`; the last two leave out what the first two have said. With the task that is to be in the dataset."""


def replaced(command: str, *words: str) -> list[str]:
    """The command's words, but for those that `words` say anew."""
    names = {word.split("=")[0] for word in words}
    return [word for word in shlex.split(command) if word.split("=")[0] not in names] + list(words)


@pytest.mark.parametrize("command", [command for command in TRAIN if "--policy.path" not in command])
def test_a_training_is_taken_word_for_word(command: str) -> None:
    config = parse(TrainConfig, shlex.split(command))
    config.check_complete()
    given = flattened(TrainConfig, read_flags(shlex.split(command)))
    assert len(given) == len(shlex.split(command))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the place of the published base model."""
    folder = tmp_path_factory.mktemp("base") / "run"
    words = ["--policy.type=smolvla", "--policy.vlm_model_name=tiny", *SMALL, *QUICK]
    assert main(["train", *words, f"--output_dir={folder}"]) == 0
    return folder


@pytest.mark.parametrize("command", TRAIN)
def test_a_training_runs(command: str, base: Path, tmp_path: Path) -> None:
    words = [*QUICK, f"--output_dir={tmp_path / 'run'}"]
    if "--policy.path" in command:
        words += [f"--policy.path={base}", "--policy.device=cpu"]
    else:
        words += ["--policy.vlm_model_name=tiny", *SMALL]
    if "num_vlm_layers" in command:
        words += ["--policy.num_vlm_layers=4"]  # `tiny` has no more
    assert main(["train", *replaced(command, *words)]) == 0
    saved = tmp_path / "run/checkpoints/last/pretrained_model/config.json"
    config = json.loads(saved.read_text(encoding="utf-8"))
    assert {name: config[name] for name in TRAIN[command]} == TRAIN[command]


@pytest.fixture
def arms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Simulated arms at every port. Gives where they are, and who drives, which the commands leave out."""
    (tmp_path / "black.json").write_text(json.dumps(CALIBRATION))

    def open_port(port: str, baud_rate: int) -> MemoryPort:
        motors = Motors(Motor(number) for number in range(1, 7))
        prepare(motors)
        return MemoryPort(motors)

    monkeypatch.setattr("smolact.robots.feetech.bus.open_port", open_port)
    return [
        f"--{side}.{name}={value}"
        for side, kind in (("robot", "so101_follower"), ("teleop", "so101_leader"))
        for name, value in (("type", kind), ("port", side), ("id", "black"), ("calibration_dir", tmp_path))
    ]


@pytest.mark.parametrize("command", RECORD)
def test_a_recording_is_taken_and_what_it_leaves_out_is_asked_for(
    command: str, arms: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A robot; who drives it; or the checkpoint, which is no folder here."""
    assert main(["record", *shlex.split(command)]) != 0
    said = capsys.readouterr().err
    if "--robot.type" not in command:
        assert "needs a robot" in said
    elif "--policy.path" in command:
        assert "'me/FINETUNED'" in said
    else:
        assert "Who drives the robot?" in said


@pytest.mark.parametrize("command", [command for command in RECORD if "--policy.path" not in command])
def test_a_recording_runs(
    command: str, arms: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*arms, *SHORT, f"--dataset.root={tmp_path / 'd'}"]
    assert main(["record", *replaced(command, *words)]) == 0, capsys.readouterr().err
    metadata = LeRobotDatasetMetadata(tmp_path / "d")
    assert metadata.total_episodes == 1
    assert list(metadata.tasks.values()) == [RECORD[command]]

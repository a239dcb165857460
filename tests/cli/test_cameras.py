"""Which cameras may be missing, and under which names, is one rule: each command that meets a policy of three cameras with one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from smolact.cli.main import main
from smolact.policies.factory import load_policy
from smolact.runtime.local import LocalPolicy
from smolact.serving.background import serving
from tests import published
from tests.robots.gate import OPEN

TABLE = ("--robot.type=sim", "--robot.env=tabletop", "--realtime=false", *OPEN)
MAP = '--rename_map={"observation.image": "observation.images.camera1"}'
CAMERA1 = "observation.images.camera1"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "push"
    recorded = ("--teleop.type=expert", "--dataset.num_episodes=1", f"--dataset.root={root}")
    assert main(["record", *TABLE, *recorded, "--dataset.video=false"]) == 0
    return root


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published.base_for_tabletop(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def trained(base: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base, fine-tuned on a robot with one of its three cameras, as the docs say."""
    run = tmp_path_factory.mktemp("runs") / "run"
    flags = ("--policy.empty_cameras=2", MAP, "--steps=1", "--batch_size=2", "--num_workers=0")
    assert (
        main(["train", f"--policy.path={base}", f"--dataset.root={dataset}", f"--output_dir={run}", *flags])
        == 0
    )
    return run / "checkpoints" / "last" / "pretrained_model"


@pytest.fixture
def url(trained: Path) -> Iterator[str]:
    with serving(LocalPolicy(*load_policy(trained, device="cpu"))) as address:
        yield address


def eval_of(policy: object, *flags: str) -> list[str]:
    few = ("--eval.n_episodes=1", "--eval.batch_size=1", "--language=false")
    return ["eval", f"--policy.path={policy}", "--env.type=tabletop", *few, *flags]


def rollout_of(policy: object, *flags: str) -> list[str]:
    return ["rollout", *TABLE, f"--policy.path={policy}", "--duration=0.5", *flags]


def record_of(policy: object, root: Path, *flags: str) -> list[str]:
    short = ("--dataset.num_episodes=1", "--dataset.episode_time_s=0.5", "--dataset.video=false")
    return ["record", *TABLE, f"--policy.path={policy}", f"--dataset.root={root}", *short, *flags]


def test_a_policy_drives_with_fewer_cameras_in_every_command(
    trained: Path, dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said = "shown to the policy as masked black: observation.images.camera2, observation.images.camera3"
    for command in (eval_of(trained), rollout_of(trained), record_of(trained, tmp_path / "driven")):
        caplog.clear()
        assert main(command) == 0, command
        assert caplog.text.count(said) == 1, command
    assert main(["doctor", str(trained), f"--with={dataset}"]) == 0
    assert main(["doctor", str(trained), "--with=tabletop"]) == 0
    assert main(["bench", f"--policy.path={trained}", "--repeats=1"]) == 0


def test_a_served_policy_takes_robots_with_fewer_cameras(url: str, tmp_path: Path) -> None:
    for command in (eval_of(url), rollout_of(url), record_of(url, tmp_path / "driven")):
        assert main(command) == 0, command


def test_the_same_actions_here_and_there_whether_cameras_are_left_out_or_not(trained: Path, url: str) -> None:
    import numpy as np

    from smolact_client import RemotePolicy

    local = LocalPolicy(*load_policy(trained, device="cpu"))
    assert (local.schema.absent_cameras, next(iter(local.schema.cameras))) == (2, "observation.image")
    seen = {
        "observation.image": np.full((64, 64, 3), 90, np.uint8),
        "observation.state": np.zeros(2, np.float32),
    }
    with RemotePolicy(url, timeout=60) as remote:
        there = remote.predict_action_chunk(seen, "push", seed=1)
    np.testing.assert_allclose(there, local.predict_action_chunk(seen, "push", seed=1), atol=1e-5)


def test_lerobots_placeholder_is_a_camera_that_no_robot_has(trained: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "lerobot"
    shutil.copytree(trained, folder)
    shape = {"type": "VISUAL", "shape": [3, 480, 640]}
    placeholders = {f"observation.images.empty_camera_{number}": shape for number in (0, 1)}

    def two_cameras(config: dict) -> None:
        inputs = {k: v for k, v in config["input_features"].items() if not k.endswith(("camera2", "camera3"))}
        config.update(input_features={**inputs, **placeholders}, empty_cameras=2)

    published.edit(folder / "config.json", two_cameras)
    for command in (eval_of(folder), rollout_of(folder), record_of(folder, tmp_path / "driven")):
        assert main(command) == 0, command


def test_a_missing_camera_is_refused_with_flags_that_settle_it(
    base: Path, tmp_path: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The hints are typed as they stand."""
    fill = f"--policy.stats={dataset}"
    for number, command in enumerate(
        (eval_of(base, fill), rollout_of(base, fill), record_of(base, tmp_path / "driven", fill))
    ):
        assert main(command) == 1, number
        said = capsys.readouterr().err
        hint = json.dumps({"observation.image": CAMERA1})
        assert f"--rename_map='{hint}'" in said and "--policy.empty_cameras=2" in said, said
        assert main([*command, f"--rename_map={hint}", "--policy.empty_cameras=2"]) == 0, number


def test_what_lacks_statistics_does_not_drive_and_says_what_settles_it(
    base: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settled = (MAP, "--policy.empty_cameras=2")
    for command in (
        eval_of(base, *settled),
        rollout_of(base, *settled),
        record_of(base, tmp_path / "driven", *settled),
    ):
        assert main(command) != 0
        said = capsys.readouterr().err
        assert "--policy.stats_key=KEY" in said and "--policy.stats=FOLDER_OR_HUB_ID" in said, said
        assert main([*command, "--policy.stats_key=so100", f"--policy.stats={dataset}"]) == 0, command


def test_the_saved_map_is_used_and_another_one_overrides_it(
    trained: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    other = '--rename_map={"observation.image": "observation.images.camera3"}'
    assert main(eval_of(trained, other)) == 0
    assert "masked black: observation.images.camera1, observation.images.camera2" in caplog.text
    wrong = '--rename_map={"observation.image": "observation.images.elbow"}'
    assert main(eval_of(trained, wrong)) == 1
    said = capsys.readouterr().err
    assert "leads 'observation.image' to 'observation.images.elbow', which the policy does not have" in said


def test_a_training_from_a_checkpoint_takes_its_map(
    trained: Path, dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    few = ("--steps=1", "--batch_size=2", "--num_workers=0")
    run = tmp_path / "run"
    command = ["train", f"--policy.path={trained}", f"--dataset.root={dataset}", f"--output_dir={run}", *few]
    assert main(command) == 0
    assert "observation.image → observation.images.camera1" in caplog.text
    again = load_policy(run, device="cpu")
    assert main(eval_of(run)) == 0 and again.policy.config.empty_cameras == 2


def test_a_flag_for_processors_is_refused_where_the_server_has_them(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for flag in (MAP, "--policy.stats_key=so100"):
        command = eval_of(url, flag)
        assert main(command) == 2
        assert "`smolact serve` there" in capsys.readouterr().err


def test_a_flag_for_an_openpi_server_says_where_its_names_are_set(capsys: pytest.CaptureFixture[str]) -> None:
    for flag, advice in (
        (MAP, "under 'keys' in the file of --policy.openpi_schema"),
        ("--policy.stats_key=so100", "settled where it was started"),
        ("--policy.int8=true", "settled where it was started"),
    ):
        assert main(eval_of("openpi+ws://127.0.0.1:1", flag)) == 2
        said = capsys.readouterr().err
        assert advice in said and "smolact serve" not in said


def test_an_evaluation_without_its_map_or_statistics_is_another_one(
    trained: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, (flag, name) in enumerate(((MAP, "rename_map"), (f"--policy.stats={dataset}", "stats"))):
        folder = f"--output_dir={tmp_path / str(number)}"
        assert main(eval_of(trained, flag, folder)) == 0
        capsys.readouterr()
        assert main(eval_of(trained, folder)) == 2
        assert f"other settings: {name}" in capsys.readouterr().err

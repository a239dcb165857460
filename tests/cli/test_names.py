"""Names of joints and cameras, and units, travel in the checkpoint, and every meeting compares them, wherever the data is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import smolact
from smolact.cli.main import main
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.envs.tabletop import Tabletop
from smolact.errors import CheckpointError, FeatureError
from smolact.policies.embodiment import Embodiment, embodiment_of, read_embodiment
from smolact.policies.fit import check_names
from smolact.recording.recorder import dataset_features
from smolact.robots.base import RobotFeatures
from smolact.runtime.local import LocalPolicy
from smolact.serving.background import serving
from smolact.types import RobotNames
from smolact_client import Offer, RemotePolicy, SchemaMismatchError
from smolact_client.schema import same_in_another_order, same_names
from tests import published
from tests.cli.test_cameras import TABLE, eval_of, record_of, rollout_of
from tests.training.runs import DATASET, run

STATE = "observation.state"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ended, _ = run(tmp_path_factory.mktemp("runs") / "run", "--steps=1")
    assert ended.checkpoint is not None
    return ended.checkpoint / "pretrained_model"


def joints() -> tuple[str, ...]:
    return tuple(LeRobotDatasetMetadata(DATASET).features["action"].names)


def test_a_training_writes_its_robot_beside_the_policy_and_lerobot_passes_over_it(trained: Path) -> None:
    robot = read_embodiment(trained)
    assert robot is not None and robot.names == {STATE: joints(), "action": joints()}
    assert robot.cameras == {key: key for key in LeRobotDatasetMetadata(DATASET).camera_keys}
    assert (robot.fps, robot.robot_type) == (10, LeRobotDatasetMetadata(DATASET).robot_type)
    assert "embodiment" not in json.loads((trained / "config.json").read_text())
    assert smolact.load_policy(trained, device="cpu").policy.config.embodiment == robot


def test_a_training_renames_its_cameras(tmp_path: Path) -> None:
    names = {"observation.images.top": "observation.images.camera1"}
    ended, _ = run(tmp_path / "run", "--steps=1", f"--rename_map={json.dumps(names)}")
    assert ended.checkpoint is not None
    robot = read_embodiment(ended.checkpoint / "pretrained_model")
    assert robot is not None and robot.cameras["observation.images.camera1"] == "observation.images.top"


@pytest.fixture(scope="module")
def url(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The policy on a server that has nothing but its checkpoint."""
    alone = tmp_path_factory.mktemp("elsewhere") / "checkpoint"
    shutil.copytree(trained, alone)
    published.edit(alone / "train_config.json", lambda c: c["dataset"].update(root="/gone", repo_id=None))
    with serving(LocalPolicy(*smolact.load_policy(alone, device="cpu"))) as address:
        yield address


def offer(names: tuple[str, ...], state: tuple[str, ...] | None = None) -> Offer:
    cameras = {"observation.images.top": (64, 96), "observation.images.wrist": (64, 96)}
    return Offer(cameras, {STATE: state or names}, names)


def test_a_server_compares_names_when_the_data_is_elsewhere(url: str) -> None:
    with RemotePolicy(url, offer=offer(joints()), timeout=60) as client:
        assert client.schema.names["action"] == joints() and client.schema.fps == 10
    older = tuple(f"main_{name.removesuffix('.pos')}" for name in joints())  # LeRobot's names of 2024
    counted = tuple(f"action_{number}" for number in range(len(joints())))  # a simulation's
    for names in (older, counted):
        RemotePolicy(url, offer=offer(names), timeout=60).close()
    for names in (joints()[::-1], ("a", "b", "c", "d", "e", "f")):
        with pytest.raises(SchemaMismatchError, match=rf"{names[0]}, {names[1]}"):
            RemotePolicy(url, offer=offer(names), timeout=60)


def test_other_names_may_be_let_through_and_another_order_may_not(trained: Path) -> None:
    policy = LocalPolicy(*smolact.load_policy(trained, device="cpu"), any_names=True)
    with serving(policy) as url:
        RemotePolicy(url, offer=offer(("a", "b", "c", "d", "e", "f")), timeout=60).close()
        with pytest.raises(SchemaMismatchError) as error:
            RemotePolicy(url, offer=offer(joints()[::-1]), timeout=60)
    assert "--check_names" not in str(error.value)


def test_names_are_compared_as_joints() -> None:
    today, older = ("shoulder_pan.pos", "gripper.pos"), ("main_shoulder_pan", "main_gripper")
    assert same_names(today, older) and same_names(today, ("state_0", "state_1"))
    assert not same_names(today, today[::-1]) and not same_names(today, ("state_0",))
    assert same_in_another_order(today, older[::-1]) and not same_in_another_order(today, ("a", "b"))


@pytest.fixture
def of_named_joints(tmp_path: Path) -> Path:
    """A policy of the tabletop that was trained on a robot whose two numbers have names, at 20 a second."""
    folder = published.base_for_tabletop(tmp_path / "policy", empty_cameras=2)
    names = {"rename_map": {"observation.image": "observation.images.camera1"}}
    published.edit(folder / "policy_preprocessor.json", lambda c: c["steps"][0]["config"].update(names))
    published.edit(folder / "config.json", lambda c: c.update(empty_cameras=2))
    Embodiment("table", 20.0, names={STATE: ("x", "y"), "action": ("x", "y")}).save(folder)
    return folder


def test_a_robot_of_other_joints_is_refused_with_the_flag_that_lets_it_through(
    of_named_joints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from smolact.robots.sim import SimRobot

    features = SimRobot.features.fget  # type: ignore[attr-defined]

    def named(robot: SimRobot) -> RobotFeatures:
        found: RobotFeatures = features(robot)
        from dataclasses import replace

        return replace(found, action=("pan", "lift"), vectors={STATE: ("pan", "lift")})

    monkeypatch.setattr(SimRobot, "features", property(named))
    fill = (f"--policy.stats={tmp_path / 'data'}",)
    demonstration = (
        "--teleop.type=expert",
        "--dataset.num_episodes=1",
        f"--dataset.root={tmp_path / 'data'}",
    )
    assert main(["record", *TABLE, *demonstration, "--dataset.video=false"]) == 0
    for command in (
        rollout_of(of_named_joints, *fill),
        record_of(of_named_joints, tmp_path / "driven", *fill),
    ):
        capsys.readouterr()
        assert main(command) == 1
        said = capsys.readouterr().err
        assert "2: x, y" in said and "2: pan, lift" in said and "--check_names=false" in said, said
        assert main([*command, "--check_names=false"]) == 0
    assert not (tmp_path / "refused").exists()


def test_an_environment_of_other_joints_is_refused_with_the_flag_that_lets_it_through(
    of_named_joints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    demonstration = (
        "--teleop.type=expert",
        "--dataset.num_episodes=1",
        f"--dataset.root={tmp_path / 'data'}",
    )
    assert main(["record", *TABLE, *demonstration, "--dataset.video=false"]) == 0
    command = eval_of(of_named_joints, f"--policy.stats={tmp_path / 'data'}")
    loaded = smolact.load_policy(of_named_joints, device="cpu", stats=tmp_path / "data")
    with serving(LocalPolicy(*loaded)) as url:
        for policy, names, flags, refused in (
            (command, ("pan", "lift"), [], "other joints, or other names"),
            (command, ("pan", "lift"), ["--check_names=false"], None),
            (command, ("y", "x"), ["--check_names=false"], "the same joints in another order"),
            (command, ("x", "y"), [], None),
            (eval_of(url), ("pan", "lift"), [], "other joints, or other names"),
        ):
            robot = RobotNames("table", names, ("m", "m"), (1.0, 1.0))
            monkeypatch.setattr(Tabletop, "robot_names", robot, raising=False)
            capsys.readouterr()
            assert main([*policy, *flags]) == (0 if refused is None else 1)
            said = capsys.readouterr().err
            if refused is not None:
                assert refused in said and "x, y" in said and ", ".join(names) in said, said
                assert "--check_names=false" in said


def test_a_rollout_says_if_its_rate_is_not_that_of_the_training(
    of_named_joints: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "data"
    demonstration = ("--teleop.type=expert", "--dataset.num_episodes=1", f"--dataset.root={root}")
    assert main(["record", *TABLE, *demonstration, "--dataset.video=false"]) == 0
    command = rollout_of(of_named_joints, f"--policy.stats={root}")
    assert main(command) == 0
    assert "Actions are sent at 10 a second, and the policy was trained at 20" in caplog.text
    caplog.clear()
    assert main([*command, "--fps=20"]) == 0 and "was trained at" not in caplog.text


def test_doctor_shows_both_lists_of_joints(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(DATASET, other)

    def turned(info: dict[str, Any]) -> None:
        info["features"]["action"]["names"] = list(joints()[::-1])

    published.edit(other / "meta" / "info.json", turned)
    assert main(["doctor", str(trained), f"--with={other}"]) == 1
    said = capsys.readouterr().out
    assert "'action' has the same joints in another order" in said
    assert ", ".join(joints()) in said and ", ".join(joints()[::-1]) in said


def test_a_training_on_another_robot_says_so_and_goes_on(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(trained, folder)
    Embodiment(names={"action": ("a", "b", "c", "d", "e", "f")}).save(folder)
    ended, _ = run(tmp_path / "run", "--steps=1", policy=(f"--policy.path={folder}", "--policy.device=cpu"))
    assert "other joints, or other names" in caplog.text and "learns the dataset's" in caplog.text
    assert ended.checkpoint is not None
    robot = read_embodiment(ended.checkpoint / "pretrained_model")
    assert robot is not None and robot.names["action"] == joints()


def test_units_travel_from_the_robot_to_the_checkpoint_and_are_compared() -> None:
    units = {"action": ("degrees", "range_0_100"), STATE: ("degrees", "range_0_100")}
    robot = RobotFeatures(("pan.pos", "gripper.pos"), {STATE: ("pan.pos", "gripper.pos")}, units=units)
    features = dataset_features(robot)
    assert features["action"].to_json()["info"] == {"units": ["degrees", "range_0_100"]}

    class Meta:
        camera_keys: tuple[str, ...] = ()
        robot_type, fps = "so_follower", 30

        def __init__(self) -> None:
            self.features = features

    known = embodiment_of([(Meta(), {})])  # type: ignore[list-item]
    assert known.units == units
    config = smolact.SmolVLAConfig().of_robot(known)
    check_names(config, known.names, units, "the robot")
    check_names(config, known.names, {}, "the robot")
    with pytest.raises(FeatureError, match=r"other units in the robot \(range_m100_100.*degrees"):
        check_names(config, known.names, {"action": ("range_m100_100", "range_0_100")}, "the robot")


@pytest.mark.parametrize(
    "content",
    ["[]", '{"names": [1]}', '{"cameras": "x"}', '{"fps": "fast"}', '{"units": {"action": 3}}', "{"],
)
def test_a_damaged_file_is_named(content: str, trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(trained, folder)
    (folder / "embodiment.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"embodiment\.json"):
        smolact.load_policy(folder, device="cpu")

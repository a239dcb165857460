"""Environments, robots, teleoperators and processor steps from installed distributions; policies are in policies/test_registry.py."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

from smolact.cli.main import main
from smolact.datasets.reader import LeRobotDataset
from smolact.envs.experts import expert_for
from smolact.envs.factory import make_env
from smolact.errors import ConfigError
from smolact.processors import step as steps
from smolact.processors.pipeline import PREPROCESSOR, ProcessorPipeline
from smolact.recording.builtin import make_sim
from smolact.registry import ENVIRONMENTS, POLICIES, ROBOTS, STEPS, TELEOPERATORS
from smolact.robots.factory import is_simulation
from smolact.types import STATE
from tests.documents import ROOT
from tests.installed import example, smolact, write_metadata


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    site = tmp_path_factory.mktemp("site")
    for name in ("own_policy", "own_environment", "own_robot"):
        example(name, site)
    return site


@pytest.mark.parametrize(
    "registry", [POLICIES, ENVIRONMENTS, ROBOTS, TELEOPERATORS], ids=lambda each: each.group
)
def test_every_built_in_type_is_there(registry) -> None:
    for kind in registry.builtin:
        assert registry[kind] is not None and kind in registry
    assert "nothing" not in registry and registry.get("nothing") is None
    with pytest.raises(ConfigError, match=f"no {registry.word} 'nothing'; known: {registry.builtin[0]}"):
        registry.find("nothing")


def test_an_installed_environment_is_shown_by_its_expert_and_evaluated_in(site: Path, tmp_path: Path) -> None:
    for processes in (1, 2):
        flags = ("--env.type=lamp", "--episodes=3", f"--output=lamps{processes}", f"--processes={processes}")
        smolact(site, "dataset", "make-demos", *flags, "--video=false", cwd=tmp_path)
    dataset = LeRobotDataset(tmp_path / "lamps1")
    assert dataset.num_episodes == 3 and dataset[0]["task"].endswith(" lamp")
    assert len(LeRobotDataset(tmp_path / "lamps2")) == len(dataset)
    train = ("--dataset.root=lamps1", "--policy.type=blind", "--steps=5", "--batch_size=4", "--num_workers=0")
    env = ("--env.type=lamp", "--eval.n_episodes=1")
    smolact(site, "train", *train, *env, "--eval_freq=5", "--output_dir=run", cwd=tmp_path)
    assert "of 1;" in smolact(site, "eval", "--policy.path=run", *env, cwd=tmp_path).stdout
    shown = smolact(site, "doctor", "run", "--with=lamp", cwd=tmp_path).stdout
    assert "an episode at random tells a task and success" in shown
    sim = ("--robot.type=sim", "--robot.env=lamp", "--realtime=false")
    recording = ("--teleop.type=expert", "--dataset.root=recorded", "--dataset.num_episodes=1")
    assert "success: 1 of 1" in smolact(site, "record", *sim, *recording, cwd=tmp_path).stdout
    assert "lamp" in smolact(site, "completion", "bash", "smolact eval --env.type=").stdout


def test_an_installed_robot_is_recorded_and_driven_by_a_policy(site: Path, tmp_path: Path) -> None:
    record = (
        "record",
        "--robot.type=slider",
        "--teleop.type=sweep",
        "--robot.speed=20",
        "--dataset.root=slides",
    )
    times = ("--dataset.num_episodes=1", "--dataset.episode_time_s=1", "--dataset.reset_time_s=0")
    asked = smolact(site, *record, *times, cwd=tmp_path, code=2).stderr
    assert "What do the episodes show?" in asked  # as of any robot that is no simulation
    smolact(site, *record, *times, "--dataset.single_task=sweep", cwd=tmp_path)
    dataset = LeRobotDataset(tmp_path / "slides")
    assert dataset.meta.robot_type == "slider" and dataset[0][STATE].shape == (1,)
    train = ("--policy.type=blind", "--steps=5", "--batch_size=4", "--num_workers=0", "--output_dir=run")
    smolact(site, "train", "--dataset.root=slides", *train, cwd=tmp_path)
    drive = ("rollout", "--policy.path=run", "--robot.type=slider", "--task=sweep", "--duration=0.5")
    smolact(site, *drive, cwd=tmp_path)
    refused = smolact(site, *drive, "--realtime=false", cwd=tmp_path, code=2).stderr
    assert "--realtime=false is for simulations" in refused
    assert "bi_so_follower, slider" in smolact(site, "robot", "info").stdout
    assert "--robot.speed=10.0" in smolact(site, "record", "--robot.type=slider", "--help").stdout


def test_a_simulation_is_known_by_its_class() -> None:
    class Real:
        def __init__(self, port: str = "") -> None: ...

    class Simulated(Real):
        def reset(self, episode: int) -> None: ...

    makers = {"real": Real, "simulated": Simulated, "made": make_sim}
    assert [is_simulation(kind, makers) for kind in (*makers, "so101_follower")] == [False, True, True, False]  # type: ignore[arg-type]


def test_an_installed_step_is_found_when_a_pipeline_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "_REGISTRY", dict(steps._REGISTRY))
    monkeypatch.delitem(sys.modules, "processor_step", raising=False)
    (tmp_path / f"{PREPROCESSOR}.json").write_text(
        '{"name": "policy_preprocessor", "steps": [{"registry_name": "mine_binary_gripper", "config": {"threshold": 30}}]}'
    )
    with pytest.raises(ValueError, match="mine_binary_gripper"):
        ProcessorPipeline.from_pretrained(tmp_path, f"{PREPROCESSOR}.json")
    site = tmp_path / "site"
    entries = {
        "mine_binary_gripper": "processor_step:BinaryGripper",
        "another": "processor_step:BinaryGripper",
    }
    write_metadata(site, "own-step", "1", {STEPS.group: entries})
    shutil.copy(ROOT / "examples/processor_step.py", site)
    monkeypatch.syspath_prepend(site)
    pipeline = ProcessorPipeline.from_pretrained(tmp_path, f"{PREPROCESSOR}.json")
    assert pipeline({STATE: torch.tensor([12.0, 41.5])})[STATE].tolist() == [12.0, 1.0]
    with pytest.raises(
        ConfigError, match=r"'another' of the distribution 'own-step' 1 can't be used: .*register_step"
    ):
        steps.find_step("another")


def test_a_broken_distribution_harms_no_other_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    groups = (ENVIRONMENTS.group, ROBOTS.group, TELEOPERATORS.group)
    write_metadata(
        tmp_path, "broken-thing", "0.3", {group: {"broken": "broken_module:Thing"} for group in groups}
    )
    (tmp_path / "broken_module.py").write_text("raise OSError('no bus')")
    monkeypatch.syspath_prepend(tmp_path)
    assert make_env("tabletop").features and expert_for("tabletop") and ROBOTS["sim"] is make_sim
    named = (
        r"'broken' of the distribution 'broken-thing' 0\.3 can't be imported \(broken_module:Thing\): no bus"
    )
    for ask in (make_env, expert_for):
        with pytest.raises(ConfigError, match=named):
            ask("broken")
    for flags in (
        ["robot", "info", "--robot.type=broken"],
        ["record", "--robot.type=sim", "--teleop.type=broken"],
    ):
        assert main(flags) == 2
        assert re.search(named, capsys.readouterr().err)


def test_an_environment_of_another_kind_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_metadata(tmp_path, "wrong-thing", "1", {ENVIRONMENTS.group: {"wrong": "math:pi"}})
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"math:pi is no smolact\.envs\.factory\.KnownEnv"):
        make_env("wrong")

"""Every flag of LeRobot's robot commands is taken here, or refused by its name with what to do instead."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smolact.cli.main import main
from smolact.cli.record import RecordConfig
from smolact.cli.replay import ReplayConfig
from smolact.cli.robot_calibrate import CalibrateConfig, DeviceConfig
from smolact.cli.robot_find_cameras import FindCamerasConfig
from smolact.cli.robot_find_joint_limits import FindJointLimitsConfig
from smolact.cli.robot_find_port import FindPortConfig
from smolact.cli.robot_teleoperate import TeleoperateConfig
from smolact.cli.rollout import RolloutConfig
from smolact.errors import ConfigError
from smolact.parsing import ConfigSchema, parse
from smolact.policies.smolvla.configuration_smolvla import SmolVLAConfig
from smolact.robots.cameras import CameraSettings

Flags = dict[str, Any]

LEROBOT: dict[str, dict[str, Flags]] = json.loads(Path(__file__).with_name("lerobot_flags.json").read_text())
"""LeRobot 0.6.1's flags, each with a value that is not its default; `lerobot_flags.py` wrote them."""
SETTINGS: dict[str, type] = {
    "calibrate": CalibrateConfig,
    "find_cameras": FindCamerasConfig,
    "find_joint_limits": FindJointLimitsConfig,
    "find_port": FindPortConfig,
    "record": RecordConfig,
    "replay": ReplayConfig,
    "rollout": RolloutConfig,
    "setup_motors": DeviceConfig,
    "teleoperate": TeleoperateConfig,
}
REFUSED = {"setup_can"}
"""Commands of LeRobot that are refused as a whole."""


def cases() -> Iterator[tuple[str, list[str], str, Any]]:
    """A command, the flags that a flag needs beside it, the flag, and a value."""
    for command, flags in LEROBOT["commands"].items():
        if command not in REFUSED:
            yield from ((command, [], flag, value) for flag, value in flags.items() if flag != "WORD")
    for name, flags in LEROBOT["sections"].items():
        section, _, kind = name.partition(".")
        command = "record" if section in ("robot", "teleop") else "rollout"
        for flag, value in flags.items() if section not in ("policy", "camera") else ():
            port = flag.rpartition(".")[0] + ".port"
            beside = [f"--{section}.{port}=PORT"] if "arm_config" in flag and flag != port else []
            is_refused = name in ("strategy.sentry", "strategy.highlight", "strategy.episodic")
            beside += [] if is_refused else [f"--{section}.type={kind}"]
            yield command, beside, f"{section}.{flag}", value


def test_the_list_has_every_command() -> None:
    assert LEROBOT["commands"].keys() == SETTINGS.keys() | REFUSED


@pytest.mark.parametrize(("command", "beside", "flag", "value"), list(cases()))
def test_a_flag_is_taken_or_refused_by_its_name(
    command: str, beside: list[str], flag: str, value: Any
) -> None:
    settings = SETTINGS[command]
    text = value if isinstance(value, str) else json.dumps(value)
    try:
        config = parse(settings, [*beside, f"--{flag}={text}"])
    except ConfigError as error:
        assert f"--{flag}={text}" in str(error)
        assert "There is no flag" not in str(error)
        return
    has_effect = config != parse(settings, beside)
    assert has_effect or is_listed(settings, beside, flag), f"--{flag} is silently ignored"


def is_listed(settings: type, beside: list[str], flag: str) -> bool:
    """Whether a flag has a reason in `smolact.unsupported`."""
    schema = ConfigSchema(settings)
    section, _, _ = flag.partition(".")
    open_section = schema.open.get(section + ".")
    kinds = [word.partition("=")[2] for word in beside if word.startswith(f"--{section}.type=")]
    inner = open_section({"type": kinds[0]}) if open_section and kinds else None
    schemas = [schema, *([ConfigSchema(inner, section + ".")] if inner else [])]
    return any(one.refusal(flag) for one in schemas)


def test_flags_of_a_checkpoints_configuration_are_taken_or_refused() -> None:
    schema = ConfigSchema(SmolVLAConfig, "policy.")
    flags = [f"policy.{flag}" for flag in LEROBOT["sections"]["policy.smolvla"]]
    assert [flag for flag in flags if flag not in schema.flags and not schema.refusal(flag)] == []


def test_cameras_have_lerobots_settings() -> None:
    ours = {field.name for field in dataclasses.fields(CameraSettings)}
    assert LEROBOT["sections"]["camera.opencv"].keys() <= ours


@pytest.mark.parametrize("kind", ["episodic", "highlight", "sentry"])
def test_a_strategy_that_is_not_here_is_refused(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"strategy.{kind}" in LEROBOT["sections"]
    assert main(["rollout", "--robot.type=sim", f"--strategy.type={kind}", "--dataset.repo_id=me/a"]) == 2
    assert f"--strategy.type={kind} can't be used: " in capsys.readouterr().err


def test_an_interface_of_a_can_bus_is_lerobots_to_set_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["robot", "setup-can", "--mode=setup", "--interfaces=can0"]) == 2
    assert "lerobot-setup-can" in capsys.readouterr().err

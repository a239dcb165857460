"""A checkpoint and a dataset, looked at alone and together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from smolact.cli.main import main
from smolact.errors import ConfigError
from smolact.training.doctor import diagnose
from tests.training.runs import DATASET, run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ended, _ = run(tmp_path_factory.mktemp("run") / "run", "--steps=1")
    assert ended.checkpoint is not None
    return ended.checkpoint / "pretrained_model"


def test_a_checkpoint_and_its_dataset_are_well(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(checkpoint), f"--with={DATASET}"]) == 0
    said = capsys.readouterr().out
    assert "smolvla" in said and "v3.0" in said and "FAULT" not in said
    assert "normalized" not in said and "the network's loss of these frames: " in said
    found = diagnose(str(DATASET), str(checkpoint))  # whichever comes first
    assert found.passed and len(found.findings) == 9


def test_each_alone_says_what_it_is(checkpoint: Path) -> None:
    alone = dict(diagnose(str(checkpoint)).rows)
    assert alone["policy"] == "smolvla" and alone["VLM"].startswith("tiny")
    dataset = dict(diagnose(str(DATASET)).rows)
    assert dataset["version"] == "v3.0" and "4 episodes" in dataset["size"]


def test_an_environment_of_another_robot_is_a_fault_with_both_sides(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", str(checkpoint), "--with=tabletop"]) == 1
    said = capsys.readouterr().out
    assert "FAULT  cameras: The policy's cameras are not in the environment" in said
    assert (
        "FAULT  state and action: The policy has 'observation.state' (6,), the environment has (2,)" in said
    )


def test_statistics_of_other_units_are_found(checkpoint: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    shutil.copytree(checkpoint, wrong)
    (state,) = wrong.glob("policy_preprocessor_step_*_normalizer_processor.safetensors")
    save_file(
        {name: value / (57.3 if name.endswith("std") else 1) for name, value in load_file(state).items()},
        state,
    )
    faults = [one.text for one in diagnose(str(wrong), str(DATASET)).findings if not one.passed]
    assert len(faults) == 1 and "after normalization, where some 3 is usual" in faults[0]


def test_a_damaged_checkpoint_is_a_fault_and_the_rest_is_told(checkpoint: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    (broken / "model.safetensors").write_bytes(b"nothing")
    found = diagnose(str(broken), str(DATASET))
    assert not found.findings[0].passed and "model.safetensors" in found.findings[0].text
    assert found.findings[1].passed  # the configuration still says what it wants


def test_a_camera_of_another_name_is_settled_by_the_flag_that_is_named(
    checkpoint: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    for path in (other / "config.json", other / "policy_preprocessor.json"):
        path.write_text(path.read_text().replace("observation.images.top", "observation.images.head"))
    fault = next(one.text for one in diagnose(str(other), str(DATASET)).findings if not one.passed)
    start = fault.index("--rename_map='") + len("--rename_map='")
    names = json.loads(fault[start : fault.index("'", start)])
    assert names == {"observation.images.top": "observation.images.head"}
    assert diagnose(str(other), str(DATASET), rename_map=names).passed


def test_of_a_saved_map_what_the_dataset_has_is_taken(checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    path = other / "policy_preprocessor.json"
    held = json.loads(path.read_text())
    step = next(one for one in held["steps"] if "rename" in one["registry_name"])
    step["config"]["rename_map"] = {"observation.images.another_robots": "observation.images.top"}
    path.write_text(json.dumps(held))
    assert diagnose(str(other), str(DATASET)).passed


def test_two_datasets_and_no_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="a dataset meets a policy"):
        diagnose(str(DATASET), str(DATASET))
    assert main(["doctor"]) == 2


def test_what_would_change_nothing_is_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said_of(*argv: object) -> str:
        assert main(["doctor", *map(str, argv)]) == 2, argv
        return capsys.readouterr().err

    second = tmp_path / "second"
    shutil.copytree(checkpoint, second)
    assert "one checkpoint or dataset, not at" in said_of(checkpoint, f"--policy.path={second}")
    for flag in ("--policy.stats_key=a", "--stats_key=a", "--policy.n_action_steps=2", "--rename_map={a: b}"):
        said = said_of(DATASET, flag)
        assert flag.partition("=")[0] in said and "--with=CHECKPOINT" in said
    assert "--env.mapping is an environment's" in said_of(checkpoint, "--env.mapping=a.yaml")
    assert "are an environment's" in said_of(checkpoint, f"--with={DATASET}", "--env.task=push")
    assert "name two things" in said_of(checkpoint, "--with=tabletop", "--env.type=pusht")


def test_a_dataset_meets_the_policy_of_the_flag(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(DATASET), f"--policy.path={checkpoint}", "--policy.n_action_steps=2"]) == 0
    assert "of which 2 are carried out" in capsys.readouterr().out


def test_an_environment_of_other_names_is_settled_by_the_mapping_that_is_named(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["doctor", str(checkpoint), "--with=tabletop"]
    main(command)
    assert "--env.mapping=FILE" in capsys.readouterr().out
    mapping = tmp_path / "names.yaml"
    mapping.write_text("observation:\n  pixels: observation.images.top\n  agent_pos: observation.state\n")
    main([*command, f"--env.mapping={mapping}"])
    said = capsys.readouterr().out
    assert (
        "Not in the environment" not in said and "observation.images.top (3," in said.split("tabletop has")[1]
    )

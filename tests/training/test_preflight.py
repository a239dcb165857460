"""What is wrong is said before the first step, with the flag that settles it."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from smolact.cli.main import main
from smolact.datasets.reader import LeRobotDataset
from smolact.errors import ConfigError, DatasetError, FeatureError, OutOfMemoryError, StatisticsError
from smolact.memory import Memory
from smolact.policies.smolvla.configuration_smolvla import SmolVLAConfig
from smolact.policies.summary import summarize
from smolact.training import preflight
from smolact.training.config import TrainConfig
from smolact.training.preflight import (
    check_cameras,
    check_env_sizes,
    check_evaluation,
    check_memory,
    check_sources,
    match_table,
)
from smolact.training.run_inputs import encode
from smolact.training.sections import DatasetSection, EnvSection, ParallelismSection
from smolact.training.sources import find_sources
from smolact.types import FeatureType, PolicyFeature
from tests.policies.tiny import tiny_policy
from tests.training.runs import DATASET, QUICK, SMALL, run, settings

CAMERA = PolicyFeature(FeatureType.VISUAL, (3, 64, 96))


@pytest.fixture(scope="module")
def dataset() -> LeRobotDataset:
    return LeRobotDataset("parity", root=DATASET)


def policy(*cameras: str, state: int = 6, **settings: Any) -> SmolVLAConfig:
    names = cameras or ("top", "wrist")
    return SmolVLAConfig(
        input_features={
            **{f"observation.images.{name}": CAMERA for name in names},
            "observation.state": PolicyFeature(FeatureType.STATE, (state,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (6,))},
        **{"chunk_size": 4, "n_action_steps": 4, **settings},
    )


def check(
    dataset: LeRobotDataset,
    config: SmolVLAConfig,
    statistics: Any = None,
    rename_map: dict[str, str] | None = None,
) -> None:
    sources = find_sources(DatasetSection(root=str(DATASET)), rename_map or {})
    sources = [replace(source, meta=dataset.meta) for source in sources]
    check_sources(config, sources, statistics or dataset.meta.stats)


def test_what_fits_passes_without_a_word(dataset: LeRobotDataset, caplog: pytest.LogCaptureFixture) -> None:
    check(dataset, policy())
    check(
        dataset,
        policy("camera1", "wrist"),
        rename_map={"observation.images.top": "observation.images.camera1"},
    )
    assert not caplog.records


def test_other_cameras_show_both_sides_and_the_map_that_settles_it(dataset: LeRobotDataset) -> None:
    with pytest.raises(FeatureError) as caught:
        check(dataset, policy("camera1", "camera2", "camera3"))
    text = str(caught.value)
    assert "the policy expects" in text
    assert "the dataset has" in text
    assert '"observation.images.top": "observation.images.camera1"' in text
    assert '"observation.images.wrist": "observation.images.camera2"' in text
    assert "--policy.empty_cameras=1" in text


def test_the_map_that_is_proposed_keeps_what_was_mapped(dataset: LeRobotDataset) -> None:
    with pytest.raises(FeatureError) as caught:
        check(dataset, policy("a", "b"), rename_map={"observation.images.top": "observation.images.a"})
    text = str(caught.value)
    assert (
        '{"observation.images.top": "observation.images.a", "observation.images.wrist": "observation.images.b"}'
        in text
    )


TOP, WRIST = "observation.images.top", "observation.images.wrist"


@pytest.mark.parametrize(
    ("rename_map", "parts"),
    [
        (
            {TOP: "observation.images.tpo"},
            (
                f"The rename map leads '{TOP}' to 'observation.images.tpo', which the policy does not have. Did you mean '{TOP}'?",
                "Settle it without --rename_map.",
            ),
        ),
        (
            {TOP: WRIST, WRIST: "observation.images.third"},
            (
                f"The rename map leads '{WRIST}' to 'observation.images.third', which the policy does not have.\n",
                "Settle it with --rename_map=",
            ),
        ),
        (
            {"observation.state": "observation.joints"},
            (
                "leads 'observation.state' to 'observation.joints', which the policy does not have",
                "or leave it out",
            ),
        ),
        ({"action": "actions"}, ("actions are not renamed", "Leave it out of the map")),
        (
            {"observation.images.tpo": TOP},
            ("leads from 'observation.images.tpo', which the dataset does not have", f"mean '{TOP}'?"),
        ),
    ],
)
def test_a_wrong_map_is_named_as_the_cause(
    dataset: LeRobotDataset, rename_map: dict[str, str], parts: tuple[str, ...]
) -> None:
    with pytest.raises((FeatureError, ConfigError)) as caught:
        check(dataset, policy(), rename_map=rename_map)
    for part in parts:
        assert part in str(caught.value)


def test_a_map_that_is_right_is_not_blamed(dataset: LeRobotDataset) -> None:
    with pytest.raises(FeatureError) as caught:
        check(dataset, policy("a", "b"), rename_map={TOP: "observation.images.a"})
    assert "The rename map leads" not in str(caught.value)


def test_the_proposed_map_keeps_names_of_vectors() -> None:
    offered = {"observation.images.tpo": CAMERA, WRIST: CAMERA}
    names = {"observation.joints": "observation.state", "front": "observation.images.tpo"}
    with pytest.raises(FeatureError) as caught:
        check_cameras(policy(), offered, names)
    assert '{"observation.joints": "observation.state", "front": "observation.images.top"}' in str(
        caught.value
    )


def test_a_map_for_something_else_is_named_where_an_environment_lacks_a_camera_or_a_state() -> None:
    names = {"observation.pixels": TOP, "observation.state": "observation.joints"}
    with pytest.raises(
        FeatureError, match=r"leads from 'observation.pixels', which the environment does not"
    ):
        check_cameras(policy(), {WRIST: CAMERA}, names, "the environment")
    offered = {"observation.joints": PolicyFeature(FeatureType.STATE, (6,))}
    with pytest.raises(FeatureError, match=r"leads 'observation.state' to 'observation.joints', which the"):
        check_env_sizes(policy(), offered, names)


def test_the_proposed_settings_do_settle_it(
    dataset: LeRobotDataset, caplog: pytest.LogCaptureFixture
) -> None:
    mapped = {
        "observation.images.top": "observation.images.camera1",
        "observation.images.wrist": "observation.images.camera2",
    }
    check(dataset, policy("camera1", "camera2", "camera3", empty_cameras=1), rename_map=mapped)
    (told,) = caplog.messages
    assert told.endswith("shown to the policy as masked black: observation.images.camera3.")


def test_cameras_that_the_policy_does_not_read_are_told(
    dataset: LeRobotDataset, caplog: pytest.LogCaptureFixture
) -> None:
    check(dataset, policy("top"))
    assert "not read by the policy: observation.images.wrist" in caplog.text


def test_a_policy_without_cameras_is_refused() -> None:
    with pytest.raises(FeatureError, match="expects no camera"):
        check_cameras(SmolVLAConfig(), {"observation.images.top": CAMERA}, {})


@pytest.mark.parametrize(
    ("rename_map", "part"),
    [
        ({"observation.images.tpo": "x"}, "Did you mean 'observation.images.top'"),
        (
            {"observation.images.top": "observation.images.wrist"},
            "two features to 'observation.images.wrist'",
        ),
    ],
)
def test_a_map_that_can_not_work_is_refused(
    dataset: LeRobotDataset, rename_map: dict[str, str], part: str
) -> None:
    with pytest.raises(ConfigError, match=part):
        check(dataset, policy(), rename_map=rename_map)


def test_a_state_under_another_name_is_named(dataset: LeRobotDataset) -> None:
    with pytest.raises(FeatureError, match=r"needs 'observation\.state'.*--rename_map"):
        check(dataset, policy(), rename_map={"observation.state": "observation.joints"})


@pytest.mark.parametrize("limit", ["max_state_dim", "max_action_dim"])
def test_more_values_than_the_policy_takes_name_the_flag(dataset: LeRobotDataset, limit: str) -> None:
    with pytest.raises(FeatureError, match=f"Raise --policy.{limit}"):
        check(dataset, policy(**{limit: 4}))


@pytest.mark.parametrize(
    ("change", "part"),
    [("missing", "no statistic 'std' of 'action'"), ("nan", "'std' of 'action' is not finite")],
)
def test_statistics_must_be_there_and_finite(dataset: LeRobotDataset, change: str, part: str) -> None:
    statistics = copy.deepcopy(dataset.meta.stats)
    if change == "missing":
        del statistics["action"]["std"]
    else:
        statistics["action"]["std"] = np.full(6, np.nan)
    with pytest.raises(StatisticsError, match=part):
        check(dataset, policy(), statistics)


def test_statistics_of_what_is_not_normalized_are_not_needed(
    dataset: LeRobotDataset, caplog: pytest.LogCaptureFixture
) -> None:
    statistics = {key: value for key, value in dataset.meta.stats.items() if "images" not in key}
    check(dataset, policy(), statistics)
    assert not caplog.records


def test_an_empty_task_names_the_episode_and_the_way_out(
    dataset: LeRobotDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    episodes = [dataset.meta.episodes[number] for number in range(4)]
    episodes[2] = type(episodes[2])(
        2, *(getattr(episodes[2], name) for name in ("from_index", "to_index")), (" ",), "x", {}
    )
    monkeypatch.setattr(dataset.meta, "episodes", episodes)
    with pytest.raises(DatasetError, match=r"episode 2.*--dataset.exclude_episodes=\[2\]"):
        check(dataset, policy())


def test_a_chunk_longer_than_the_episodes_is_told(
    dataset: LeRobotDataset, caplog: pytest.LogCaptureFixture
) -> None:
    check(dataset, policy(chunk_size=50))
    assert "--policy.chunk_size" in caplog.text


def test_an_environment_for_another_robot_is_refused() -> None:
    offered = {
        "observation.state": PolicyFeature(FeatureType.STATE, (2,)),
        "action": PolicyFeature(FeatureType.ACTION, (6,)),
    }
    with pytest.raises(FeatureError, match=r"'observation\.state' \(6,\), the environment has \(2,\)"):
        check_env_sizes(policy(), offered)


def test_the_table_shows_names_sizes_and_what_is_not_read() -> None:
    names = {"observation.images.top": "observation.images.camera1"}
    (source,) = find_sources(DatasetSection(root=str(DATASET)), names)
    rows = [
        line.split("   ") for line in match_table(policy("camera1", "camera2"), source).strip().splitlines()
    ]
    table = {left.strip(): right.strip() for left, *_, right in rows}
    assert table["observation.images.camera1 (3, 64, 96)"] == "observation.images.top (3, 64, 96)"
    assert table["observation.images.camera2 (3, 64, 96)"] == "—"
    assert table["—"].startswith("observation.images.wrist (3, ")
    assert table["action (6,)"].startswith("action (6,): ")


BIG = 10**9
"""Samples that no machine has the memory for."""


def test_a_batch_that_no_memory_holds_is_refused_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(OutOfMemoryError, match=r"activations of \d+ samples.*Lower --batch_size"):
        run(tmp_path / "run", f"--batch_size={BIG}", "--check=true")


def test_the_command_ends_with_an_error_where_memory_is_too_small(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--dataset.root={DATASET}", *SMALL, *QUICK, f"--output_dir={tmp_path / 'run'}"]
    assert main(["train", *flags, f"--batch_size={BIG}", "--check=true"]) == 1
    assert "this machine has" in capsys.readouterr().err


def accelerator_of(device: str = "cpu", precision: str = "no", processes: int = 1) -> Any:
    return SimpleNamespace(device=torch.device(device), mixed_precision=precision, num_processes=processes)


def test_what_keeps_less_may_take_more_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy()
    summary = summarize(policy, 1000)
    room = summary.model_bytes + summary.activation_bytes // 2
    monkeypatch.setattr(preflight, "memory_of", lambda device: Memory(room, 2 * room))
    config = settings(*SMALL, "--batch_size=1000", "--cpu_processes=1")
    with pytest.raises(OutOfMemoryError, match=r"this machine has.*Lower --batch_size"):
        check_memory(policy, config, accelerator_of())
    check_memory(policy, config, accelerator_of(precision="bf16"))
    check_memory(policy, replace(config, gradient_checkpointing=True), accelerator_of())


def test_where_processes_share_a_step_a_piece_of_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy()
    monkeypatch.setattr(preflight, "memory_of", lambda device: Memory(1, 1))
    monkeypatch.setattr(preflight, "cores", lambda: 2)
    config = settings(*SMALL, "--batch_size=1000")
    with pytest.raises(OutOfMemoryError, match="activations of 250 samples"):
        check_memory(policy, config, accelerator_of())
    with pytest.raises(OutOfMemoryError, match="activations of 1000 samples"):
        check_memory(policy, config, accelerator_of("cuda"))


def test_a_policy_larger_than_the_memory_is_to_be_split(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy()
    room = summarize(policy).model_bytes // 2
    monkeypatch.setattr(preflight, "memory_of", lambda device: Memory(room, room))
    config = settings(*SMALL, "--batch_size=1")
    with pytest.raises(OutOfMemoryError, match=r"this GPU has.*--parallelism.dp_shard=-1"):
        check_memory(policy, config, accelerator_of("cuda", processes=4))
    split = replace(config, parallelism=ParallelismSection(dp_shard=-1))
    check_memory(policy, split, accelerator_of("cuda", processes=4))


def test_memory_that_others_use_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(preflight, "memory_of", lambda device: Memory(2**40, 2**20))
    run(tmp_path / "run", "--check=true")
    assert (
        "this machine has 1 TiB, of which 1 MiB are free. It may run out. Lower --batch_size" in caplog.text
    )


def test_what_is_only_encoded_needs_no_memory_for_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "memory_of", lambda device: Memory(1, 1))
    config = settings(*SMALL, *QUICK, "--dataset.cache=frames", f"--cache.folder={tmp_path}")
    assert "63" in encode(config)


def silent_tabletop(tmp_path: Path, eval_freq: int) -> tuple[SmolVLAConfig, TrainConfig]:
    """An environment that fits the policy, and does not tell success where it is looked for."""
    mapping = tmp_path / "tabletop.yaml"
    mapping.write_text(
        "observation: {pixels: observation.image, agent_pos: observation.state}\nsuccess: won\n"
    )
    vector = PolicyFeature(FeatureType.STATE, (2,))
    config = SmolVLAConfig(
        input_features={
            "observation.image": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)),
            "observation.state": vector,
        },
        output_features={"action": replace(vector, type=FeatureType.ACTION)},
    )
    env = EnvSection(type="tabletop", mapping=mapping, kwargs={"max_episode_steps": 3})
    return config, TrainConfig(env=env, steps=10, eval_freq=eval_freq)


def test_an_environment_that_tells_no_success_is_found_out_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not tell success"):
        check_evaluation(*silent_tabletop(tmp_path, eval_freq=5))


def test_an_environment_that_is_never_used_is_not_played(tmp_path: Path, caplog: Any) -> None:
    check_evaluation(*silent_tabletop(tmp_path, eval_freq=0))
    assert "--eval_freq=0 never comes" in caplog.text

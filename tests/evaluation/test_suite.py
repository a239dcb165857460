"""A suite of episodes: nothing is played twice, nothing is lost, and processes share it out."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from smolact.cli import eval_processes
from smolact.cli.main import main
from smolact.cli.servers import ChosenPolicy, load_chosen
from smolact.envs.factory import make_env
from smolact.errors import ConfigError
from smolact.evaluation import shards
from smolact.evaluation.conditions import PLAIN, conditions_for
from smolact.evaluation.metrics import Comparison, EpisodeResult, EvaluationResult
from smolact.evaluation.suite import EpisodeLog, Results, Shard, collect, run_suite, to_json
from smolact.policies import factory
from smolact.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from tests.evaluation.test_conditions import FAST, Deaf, Listener

EPISODES, SEED = 5, 3
POLICIES = ("listener", "deaf")
SETTINGS = {"seed": SEED}
ALONE = Shard()


def play(
    folder: Path | None, share: Shard = ALONE, n_episodes: int = EPISODES, stop_after: int | None = None
) -> tuple[Results, list[tuple[str, str, int]]]:
    """The suite's results so far, and which episodes were played for them."""
    played: list[tuple[str, str, int]] = []

    def ended(policy: str, condition: str, result: EpisodeResult) -> None:
        played.append((policy, condition, result.index))
        if len(played) == stop_after:
            raise KeyboardInterrupt

    log = EpisodeLog(folder, SETTINGS, share)
    with make_env("tabletop", 3, **FAST) as envs:
        conditions = conditions_for(envs)[:2]
        kinds = {"listener": Listener, "deaf": Deaf}
        with contextlib.suppress(KeyboardInterrupt):
            run_suite(
                POLICIES,
                lambda name: kinds[name](envs),
                envs,
                conditions,
                log,
                n_episodes=n_episodes,
                seed=SEED,
                on_episode=ended,
            )
    names = [PLAIN, *(condition.name for condition in conditions)]
    facts = {name: {"n_action_steps": 1, "chunk_size": 1} for name in POLICIES}
    return collect(POLICIES, names, log, n_episodes, SEED, facts), played


def without_time(results: Results) -> Results:
    return {
        policy: {name: replace(result, seconds=0.0) for name, result in found.items()}
        for policy, found in results.items()
    }


@pytest.fixture(scope="module")
def whole() -> Results:
    return without_time(play(None)[0])


def test_a_suite_plays_every_policy_in_every_condition(whole: Results) -> None:
    for found in whole.values():
        assert [len(result.results) for result in found.values()] == [EPISODES] * 3
    assert whole["listener"][PLAIN].success.rate == 1.0
    json.dumps(to_json(whole), allow_nan=False)


def test_after_a_kill_only_the_rest_is_played_and_the_result_is_the_same(
    whole: Results, tmp_path: Path
) -> None:
    _, first = play(tmp_path / "e", stop_after=7)
    log = tmp_path / "e" / "episodes_0.jsonl"
    text = log.read_text()
    log.write_text(text[: len(text) - 20])  # the kill came in the middle of a line
    found, second = play(tmp_path / "e")
    assert without_time(found) == whole
    assert len(first) == 7 and len(second) == 2 * 3 * EPISODES - 6
    assert not set(first[:6]) & set(second)
    assert play(tmp_path / "e")[1] == []
    more, third = play(tmp_path / "e", n_episodes=EPISODES + 1)
    assert len(third) == 2 * 3
    assert len(more["deaf"][PLAIN].results) == EPISODES + 1


def test_processes_share_the_episodes(whole: Results, tmp_path: Path) -> None:
    _, one = play(tmp_path / "e", Shard(0, 2))
    found, other = play(tmp_path / "e", Shard(1, 2))
    assert not set(one) & set(other)
    assert len(one) + len(other) == 2 * 3 * EPISODES
    assert without_time(found) == whole


def test_a_folder_holds_one_evaluation(tmp_path: Path) -> None:
    EpisodeLog(tmp_path, {"seed": 1, "environment": "tabletop"})
    with pytest.raises(ConfigError, match="seed was 1, and is 2"):
        EpisodeLog(tmp_path, {"seed": 2, "environment": "tabletop"})


def result_of(outcomes: list[bool], seed: int = 0) -> EvaluationResult:
    results = tuple(
        EpisodeResult(index, seed + index, "t", "k", success, 1, 0.0)
        for index, success in enumerate(outcomes)
    )
    return EvaluationResult(0, 1, 1, 1.0, results)


def test_policies_are_compared_episode_by_episode() -> None:
    first = result_of([True] * 10 + [False] * 10)
    second = result_of([True] * 8 + [False] * 2 + [True] * 9 + [False])
    compared = Comparison.of(first, second)
    assert (compared.only_first, compared.only_second, compared.both, compared.neither) == (2, 9, 8, 1)
    assert compared.difference == pytest.approx(0.35)
    assert compared.p_value == pytest.approx(0.065429688)  # two-sided binomial test of 2 in 11
    assert Comparison.of(first, first).p_value == 1.0
    with pytest.raises(ConfigError, match="same episodes"):
        Comparison.of(first, result_of([True] * 20, seed=1))


def checkpoint(folder: Path, seed: int, **settings: Any) -> str:
    """A tiny policy for the tabletop that has learnt nothing."""
    import torch

    from smolact.policies.factory import make_policy, make_pre_post_processors
    from smolact.policies.smolvla.configuration_smolvla import SmolVLAConfig

    torch.manual_seed(seed)
    with make_env("tabletop") as envs:
        features = envs.features
    sizes: dict[str, Any] = {"num_vlm_layers": 1, "chunk_size": 8, "n_action_steps": 8, "num_steps": 2}
    config = SmolVLAConfig(
        vlm_model_name="tiny",
        load_vlm_weights=False,
        resize_imgs_with_padding=(64, 64),
        input_features={key: feature for key, feature in features.items() if key != "action"},
        output_features={"action": features["action"]},
        **(sizes | settings),
    )
    policy = make_policy(config, pretrained_vlm=False)
    ones = {"mean": torch.zeros(2).numpy() + 0.5, "std": torch.ones(2).numpy()}
    processors = make_pre_post_processors(policy, {"observation.state": ones, "action": ones})
    policy.save_pretrained(folder)
    for processor in processors:
        processor.save_pretrained(folder)
    return str(folder)


def test_the_command_compares_and_shares_over_processes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = checkpoint(tmp_path / "one", 0), checkpoint(tmp_path / "two", 1)
    flags = [
        f"--policy.path={one}",
        f"--compare=[{two}]",
        *("--policy.device=cpu", "--env.type=tabletop", "--env.kwargs={max_episode_steps: 9}"),
        *("--eval.n_episodes=4", "--eval.batch_size=2"),
    ]
    assert main(["eval", *flags, f"--output_dir={tmp_path / 'alone'}"]) == 0
    shown, said = capsys.readouterr()
    plan = "48 episodes: 4 in each of 6 conditions with each of 2 policies (--language=false: 4 in 1)"
    first, second, *lines, last = said.splitlines()
    assert (first, second) == (f"Loading {one} …", plan)
    assert f"Loading {two} …" in lines and last == "Filming episodes for the report …"
    assert lines[-1].startswith("48 of 48 episodes, ")
    assert ", policy 2, nonsense instruction: success " in lines[-1]
    assert f"against {one}:" in shown and "unseen phrasings" in shown and "2 denoising steps" in shown
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        "-m",
        "smolact",
    ]
    done = subprocess.run(
        [*command, "eval", *flags, f"--output_dir={tmp_path / 'two_processes'}"],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("unseen phrasings") == 2  # both policies, by one process
    # The other process may have played some before this one counts.
    told = re.escape(plan) + r"(; \d+ of them were played before)?; 2 processes share them"
    assert len(re.findall(told, done.stderr)) == 1
    assert done.stderr.count("24 of 24 episodes") == 1
    alone, shared = (
        json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("alone", "two_processes")
    )
    assert "Against" in (tmp_path / "alone" / "report.html").read_text()
    assert alone["results"] == shared["results"]
    assert alone["conditions"].keys() == shared["conditions"].keys()
    capsys.readouterr()
    assert main(["eval", *flags, "--eval.n_episodes=5", f"--output_dir={tmp_path / 'alone'}"]) == 0
    said = capsys.readouterr().err
    assert "60 episodes: 5 in each of 6 conditions" in said and "; 48 of them were played before\n" in said
    assert "60 of 60 episodes" in said
    assert main(["eval", *flags]) == 0


@pytest.mark.parametrize(("name", "kind"), [("int8", "Int8PackedLinear"), ("fp8", "Float8PackedLinear")])
def test_an_evaluation_with_weights_in_8_bits_is_one_of_its_own(
    name: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from smolact.policies.inference import packing as products_module

    products, rounded = [], getattr(products_module, kind)
    multiply = rounded.__call__
    monkeypatch.setattr(rounded, "__call__", lambda self, x: products.append(1) or multiply(self, x))
    flags = [
        f"--policy.path={checkpoint(tmp_path / 'policy', 0)}",
        *("--policy.device=cpu", "--env.type=tabletop", "--env.kwargs={max_episode_steps: 9}"),
        *("--eval.n_episodes=2", "--eval.batch_size=2", "--language=false", "--n_videos=0"),
    ]
    assert main(["eval", *flags, f"--output_dir={tmp_path / 'whole'}"]) == 0
    assert not products
    assert main(["eval", *flags, f"--policy.{name}=true", f"--output_dir={tmp_path / name}"]) == 0
    assert products
    capsys.readouterr()
    assert main(["eval", *flags, f"--output_dir={tmp_path / name}"]) == 2
    assert "other settings: policy settings" in capsys.readouterr().err
    assert main(["eval", *flags, f"--policy.{name}=true", "--engine=false"]) == 2
    assert f"--policy.{name}=true is the engine's: leave out --engine=false" in capsys.readouterr().err
    assert main(["eval", *flags, "--policy.int8=true", "--policy.fp8=true"]) == 2
    assert "round the same weights" in capsys.readouterr().err


def test_processes_of_this_machine_share_an_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [
        f"--policy.path={checkpoint(tmp_path / 'policy', 0)}",
        *("--env.type=tabletop", "--env.kwargs={max_episode_steps: 9}", "--eval.n_episodes=3"),
        *("--eval.batch_size=2", "--n_videos=0"),
    ]
    for number in (1, 2):
        assert (
            main(["eval", *flags, f"--cpu_processes={number}", f"--output_dir={tmp_path / str(number)}"]) == 0
        )
    alone, shared = (json.loads((tmp_path / str(number) / "metrics.json").read_text()) for number in (1, 2))
    assert alone["results"] == shared["results"]
    assert (tmp_path / "2/episodes_1.jsonl").is_file()
    capsys.readouterr()
    with monkeypatch.context() as nobody:  # there is nothing left to play: no process is started for it
        nobody.setattr(shards, "play_shards", lambda *_: pytest.fail("a process was started"))
        assert main(["eval", *flags, "--cpu_processes=2", f"--output_dir={tmp_path / '2'}"]) == 0
    assert main(["eval", *flags, "--cpu_processes=2"]) == 0  # without a folder
    assert "18 of 18 episodes" in capsys.readouterr().err
    assert main(["eval", *flags, "--cpu_processes=2", "--policy.device=cuda"]) == 2
    assert "--cpu_processes=2 is for a CPU" in capsys.readouterr().err
    for number in (0, 4):
        assert main(["eval", *flags, f"--cpu_processes={number}"]) == 2
        assert "--eval.n_episodes=3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("others", "device", "n_episodes", "cores", "expected"),
    [
        ((), None, 50, 4, 4),
        ((), None, 50, 16, 5),  # ten episodes of a condition for each
        ((), None, 9, 4, 1),
        ((), "cuda", 50, 4, 1),
        (("ws://127.0.0.1:1",), None, 50, 4, 1),
    ],
)
def test_small_policies_on_a_cpu_are_played_by_a_process_for_each_core(
    others: tuple[str, ...],
    device: str | None,
    n_episodes: int,
    cores: int,
    expected: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policies = [str(checkpoint(tmp_path / "policy", 0)), *others]
    monkeypatch.setattr(eval_processes, "cores", lambda: cores)
    monkeypatch.setattr(factory, "best_device", lambda: "cpu")
    assert eval_processes.default_processes(policies, device, n_episodes) == expected
    monkeypatch.setattr(factory, "SMALL", 10)
    assert eval_processes.default_processes(policies, device, n_episodes) == 1


def test_a_small_policy_predicts_in_one_thread_and_a_large_one_in_pytorchs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = checkpoint(tmp_path / "policy", 0), []
    real = SmolVLAPolicy.predict_action_chunk

    def noted(self: SmolVLAPolicy, *given: Any, **more: Any) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return real(self, *given, **more)

    monkeypatch.setattr(SmolVLAPolicy, "predict_action_chunk", noted)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        chosen = ChosenPolicy(path=str(path), settings={"device": "cpu"})
        load_chosen(chosen).warm_up()
        load_chosen(chosen, threads=True).warm_up()
        monkeypatch.setattr(factory, "SMALL", 10)
        load_chosen(chosen).warm_up()
        assert seen == [1, 2, 2] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)

"""Policies × conditions × episodes: the evaluation suite of `smolact eval`, parallel and resumable.

Every episode that ends is appended to a log file. A restart plays only the missing episodes. Of n processes each plays every n-th
episode and writes its own file.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from smolact import durable
from smolact.envs.batch import EnvBatch
from smolact.errors import ConfigError
from smolact.evaluation.conditions import PLAIN, SWAPPED, Condition
from smolact.evaluation.metrics import Comparison, EpisodeResult, EvaluationResult
from smolact.evaluation.rollout import evaluate, plan_episodes
from smolact.files import parse_json_lines, read_json_object
from smolact.runtime.policy import Policy

SETTINGS = "evaluation.json"

Load = Callable[[str], Policy]
Results = dict[str, dict[str, EvaluationResult]]
"""Results by policy and condition."""


@dataclass(frozen=True)
class Shard:
    """A process's share of the episodes: those with index ≡ `rank` modulo `processes`."""

    rank: int = 0
    processes: int = 1


@dataclass
class EpisodeLog:
    """The finished episodes of an evaluation, in a folder or (None) in memory.

    Raises:
        ConfigError: the folder contains an evaluation with other settings.
    """

    folder: Path | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    shard: Shard = Shard()
    _lines: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Read the existing episodes and compare the settings."""
        if self.folder is None:
            return
        durable.make_folder(self.folder)
        path = self.folder / SETTINGS
        if path.is_file():
            saved = read_json_object(path, "Choose another --output_dir, or remove it.")
            different = [name for name in self.settings if saved.get(name) != self.settings[name]]
            if different:
                raise ConfigError(
                    f"{self.folder} holds an evaluation with other settings: {different[0]} was "
                    f"{saved.get(different[0])!r}, and is {self.settings[different[0]]!r}. Choose another --output_dir."
                )
        elif self.shard.rank == 0:
            durable.write_json(path, dict(self.settings))
        self._lines = list(self._read())

    def add(self, policy: str, condition: str, result: EpisodeResult) -> None:
        """Append an episode."""
        self._append({"policy": policy, "condition": condition, **asdict(result)})

    def add_seconds(self, policy: str, condition: str, seconds: float) -> None:
        """Append the duration of this process's shard."""
        seconds /= self.shard.processes  # they run in parallel: the sum over processes is the elapsed time
        self._append({"policy": policy, "condition": condition, "seconds": round(seconds, 2)})

    def results(self, policy: str, condition: str) -> dict[int, EpisodeResult]:
        """Return the results by episode index."""
        names = [item.name for item in fields(EpisodeResult)]
        return {
            line["index"]: EpisodeResult(**{name: line[name] for name in names if name in line})
            for line in self._of(policy, condition)
            if "index" in line
        }

    def seconds(self, policy: str, condition: str) -> float:
        """Return the time that playing took."""
        return sum(float(line["seconds"]) for line in self._of(policy, condition) if "seconds" in line)

    def reread(self) -> None:
        """Read the episodes that other processes have written."""
        if self.folder is not None:
            self._lines = list(self._read())

    def _of(self, policy: str, condition: str) -> Iterator[dict[str, Any]]:
        return (line for line in self._lines if (line["policy"], line["condition"]) == (policy, condition))

    def _append(self, line: dict[str, Any]) -> None:
        self._lines.append(line)
        if self.folder is not None:
            path = self.folder / f"episodes_{self.shard.rank}.jsonl"
            with durable.annotate_errors(path), path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def _read(self) -> Iterator[dict[str, Any]]:
        assert self.folder is not None
        for path in sorted(self.folder.glob("episodes_*.jsonl")):
            text = path.read_text(encoding="utf-8")
            if text and not text.endswith("\n"):  # a kill truncated the line: that episode is played again
                text = text[: text.rfind("\n") + 1]
                if path.name == f"episodes_{self.shard.rank}.jsonl":
                    durable.write_text(path, text)
            yield from (line for _, line in parse_json_lines(text.encode()))


def run_suite(
    policies: Sequence[str],
    load: Load,
    envs: EnvBatch,
    conditions: Sequence[Condition],
    log: EpisodeLog,
    *,
    n_episodes: int,
    seed: int,
    on_episode: Callable[[str, str, EpisodeResult], None] | None = None,
    on_step: Callable[[str, str, int, int], None] | None = None,
) -> None:
    """Play this process's episodes that `log` lacks: every policy in the plain condition and in `conditions`.

    Args:
        n_episodes: of each task of a benchmark; in all for other environments.
        load: loads a policy; called only for policies with missing episodes, one at a time.
        on_episode: called with policy, condition and result of each episode when its group ends.
        on_step: called before each step of a group with policy, condition, the number of its episodes and the step.
    """
    shard = log.shard
    for name in policies:
        policy: Policy | None = None
        for condition in (None, *conditions):
            label = PLAIN if condition is None else condition.name
            done = log.results(name, label)
            plans = [
                plan
                for plan in plan_episodes(n_episodes, seed, condition=condition, tasks=envs.tasks)
                if plan.index % shard.processes == shard.rank and plan.index not in done
            ]
            if not plans:
                continue
            policy = policy or load(name)
            began = time.monotonic()

            def add_episode(result: EpisodeResult, name: str = name, label: str = label) -> None:
                log.add(name, label, result)
                if on_episode is not None:
                    on_episode(name, label, result)

            def report_step(episodes: int, step: int, name: str = name, label: str = label) -> None:
                if on_step is not None:
                    on_step(name, label, episodes, step)

            evaluate(
                policy,
                envs,
                n_episodes=n_episodes,
                seed=seed,
                plans=plans,
                condition=condition,
                on_episode=add_episode,
                on_step=report_step,
            )
            log.add_seconds(name, label, time.monotonic() - began)


def collect(
    policies: Sequence[str],
    conditions: Sequence[str],
    log: EpisodeLog,
    n_episodes: int,
    seed: int,
    facts: Mapping[str, Mapping[str, int | None]],
) -> Results:
    """Return the results of all processes.

    Args:
        n_episodes: of a policy in a condition, of all tasks together.
        facts: `n_action_steps`, `chunk_size` and `num_steps` of each policy.
    """
    log.reread()
    collected: Results = {}
    for name in policies:
        for condition in conditions:
            results = log.results(name, condition)
            collected.setdefault(name, {})[condition] = EvaluationResult(
                seed=seed,
                seconds=log.seconds(name, condition),
                results=tuple(results[index] for index in sorted(results) if index < n_episodes),
                condition=condition,
                **{key: facts[name].get(key) for key in ("n_action_steps", "chunk_size", "num_steps")},
            )
    return collected


def to_json(results: Results) -> dict[str, Any]:
    """Return the content of `metrics.json`: the first policy's plain result, its other conditions, and the other policies."""
    first, *others = results
    plain = results[first][PLAIN].to_dict()
    plain["policy"] = first
    plain["conditions"] = {name: result.to_dict() for name, result in results[first].items() if name != PLAIN}
    if SWAPPED in results[first]:
        swapped = results[first][SWAPPED]
        assert swapped.other_goal is not None
        plain["language_control"] = {
            "asked_goal_reached": swapped.success.rate,
            "asked_goal_interval": list(swapped.success.interval),
            "old_goal_reached": swapped.other_goal.rate,
            "old_goal_interval": list(swapped.other_goal.interval),
            "episodes": swapped.success.episodes,
        }
    if others:
        plain["compared"] = {
            name: {
                condition: {
                    **result.to_dict(),
                    "difference": (compared := Comparison.of(results[first][condition], result)).difference,
                    "p_value": compared.p_value,
                }
                for condition, result in results[name].items()
            }
            for name in others
        }
    return plain

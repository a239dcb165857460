"""Policies × conditions × episodes: what `smolact eval` runs, shared out over processes and safe from a kill.

Every episode that ends is a line on the disk. Started again, only the others are played; several processes play every
n-th episode each, into files of their own.
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
"""Policy to condition to result."""


@dataclass(frozen=True)
class Shard:
    """Which part of the episodes this process plays: those whose number is `rank` modulo `processes`."""

    rank: int = 0
    processes: int = 1


@dataclass
class EpisodeLog:
    """The episodes of an evaluation that are over, in a folder or (None) in memory.

    Raises:
        ConfigError: the folder holds another evaluation.
    """

    folder: Path | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    shard: Shard = Shard()
    _lines: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Read what is there."""
        if self.folder is None:
            return
        durable.make_folder(self.folder)
        path = self.folder / SETTINGS
        if path.is_file():
            kept = read_json_object(path, "Choose another --output_dir, or remove it.")
            different = [name for name in self.settings if kept.get(name) != self.settings[name]]
            if different:
                raise ConfigError(
                    f"{self.folder} holds an evaluation with other settings: {different[0]} was "
                    f"{kept.get(different[0])!r}, and is {self.settings[different[0]]!r}. Choose another --output_dir."
                )
        elif self.shard.rank == 0:
            durable.write_json(path, dict(self.settings))
        self._lines = list(self._read())

    def add(self, policy: str, condition: str, result: EpisodeResult) -> None:
        """An episode is over."""
        self._append({"policy": policy, "condition": condition, **asdict(result)})

    def add_seconds(self, policy: str, condition: str, seconds: float) -> None:
        """This process's share took so long."""
        seconds /= (
            self.shard.processes
        )  # they play side by side: together, what they write is the time that passed
        self._append({"policy": policy, "condition": condition, "seconds": round(seconds, 2)})

    def results(self, policy: str, condition: str) -> dict[int, EpisodeResult]:
        """Number to result."""
        names = [item.name for item in fields(EpisodeResult)]
        return {
            line["index"]: EpisodeResult(**{name: line[name] for name in names if name in line})
            for line in self._of(policy, condition)
            if "index" in line
        }

    def seconds(self, policy: str, condition: str) -> float:
        """How long playing took."""
        return sum(float(line["seconds"]) for line in self._of(policy, condition) if "seconds" in line)

    def reread(self) -> None:
        """Take in what other processes wrote."""
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
            if text and not text.endswith("\n"):  # cut off by a kill: that episode is played again
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
    """Play what `log` does not have: every policy in the plain condition and in `conditions`, this process's share.

    Args:
        policies: names that `load` takes.
        load: is called for policies that have something to play, one after the other.
        envs: from `make_env`.
        conditions: beside the plain one.
        log: takes the episodes.
        n_episodes: of each policy in each condition.
        seed: of the evaluation.
        on_episode: is called with each episode as its wave ends: policy, condition, result.
        on_step: is called before each step of a wave: policy, condition, how many episodes the wave has, the step's number.
    """
    shard = log.shard
    for name in policies:
        policy: Policy | None = None
        for condition in (None, *conditions):
            told = PLAIN if condition is None else condition.name
            done = log.results(name, told)
            plans = [
                plan
                for plan in plan_episodes(n_episodes, seed, condition=condition)
                if plan.index % shard.processes == shard.rank and plan.index not in done
            ]
            if not plans:
                continue
            policy = policy or load(name)
            began = time.monotonic()

            def ended(result: EpisodeResult, name: str = name, told: str = told) -> None:
                log.add(name, told, result)
                if on_episode is not None:
                    on_episode(name, told, result)

            def stepped(episodes: int, step: int, name: str = name, told: str = told) -> None:
                if on_step is not None:
                    on_step(name, told, episodes, step)

            evaluate(
                policy,
                envs,
                n_episodes=n_episodes,
                seed=seed,
                plans=plans,
                condition=condition,
                on_episode=ended,
                on_step=stepped,
            )
            log.add_seconds(name, told, time.monotonic() - began)


def collect(
    policies: Sequence[str],
    conditions: Sequence[str],
    log: EpisodeLog,
    n_episodes: int,
    seed: int,
    facts: Mapping[str, Mapping[str, int | None]],
) -> Results:
    """What all processes found.

    Args:
        policies, conditions: by name.
        log: with everything in it.
        n_episodes, seed: of the evaluation.
        facts: of each policy, `n_action_steps`, `chunk_size` and `num_steps`.
    """
    log.reread()
    found: Results = {}
    for name in policies:
        for condition in conditions:
            results = log.results(name, condition)
            found.setdefault(name, {})[condition] = EvaluationResult(
                seed=seed,
                seconds=log.seconds(name, condition),
                results=tuple(results[index] for index in sorted(results) if index < n_episodes),
                condition=condition,
                **{key: facts[name].get(key) for key in ("n_action_steps", "chunk_size", "num_steps")},
            )
    return found


def to_json(results: Results) -> dict[str, Any]:
    """`metrics.json`: the first policy's plain result, its other conditions, and the other policies beside it."""
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

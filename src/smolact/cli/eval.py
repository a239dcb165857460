"""`smolact eval`: how often a policy does what it is told, in an environment."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolact.cli.help import asks_for_help, help_text
from smolact.cli.parsing import parse
from smolact.errors import ConfigError
from smolact.settings import rest, setting
from smolact.training.sections import EnvSection, EvalSection, policy_fields

if TYPE_CHECKING:
    from smolact.evaluation.metrics import EpisodeResult, EvaluationResult

USAGE = "smolact eval --policy.path=CHECKPOINT --env.type=tabletop [--eval.n_episodes=50] [--NAME=VALUE …]"


@dataclass
class EvaluatedPolicy:
    """Which policy; further settings override those of its configuration."""

    path: str | None = setting(None, "The checkpoint: a folder or a Hub id.")
    stats_key: str | None = setting(
        None, "Which dataset's statistics to normalize with, where a checkpoint holds those of several."
    )
    settings: dict[str, Any] = rest(policy_fields)


@dataclass
class EvalConfig:
    """What `smolact eval` takes."""

    policy: EvaluatedPolicy = field(default_factory=EvaluatedPolicy)
    env: EnvSection = field(default_factory=EnvSection)
    eval: EvalSection = field(default_factory=EvalSection)
    seed: int = setting(1000, "Seed of the episodes and of what the policy draws.")
    task: str | None = setting(
        None, "Tell the policy this, whatever the environment asks for (as --env.task)."
    )
    n_videos: int = setting(0, "How many episodes to film.")
    output_dir: Path | None = setting(None, "Where metrics.json and videos go; nothing is written when null.")


def run(argv: Sequence[str]) -> int:
    """Evaluate as the flags say, and print the result."""
    if asks_for_help(argv):
        sys.stdout.write(help_text(EvalConfig, USAGE, (__doc__ or "").strip(), argv) + "\n")
        return 0
    config, _ = parse(EvalConfig, argv)
    if config.policy.path is None or config.env.type is None:
        missing = "--policy.path=CHECKPOINT" if config.policy.path is None else "--env.type=tabletop"
        raise ConfigError(f"`smolact eval` needs {missing}: a policy and an environment to try it in.")
    if config.n_videos and config.output_dir is None:
        raise ConfigError(
            f"--n_videos={config.n_videos} needs a folder to write to. Give --output_dir=FOLDER."
        )
    result = evaluate_checkpoint(config)
    sys.stdout.write(_summary(result))
    if config.output_dir is not None:
        from smolact import durable

        path = config.output_dir / "metrics.json"
        durable.write_json(path, result.to_dict())
        sys.stdout.write(f"\n{path}\n")
    return 0


def evaluate_checkpoint(config: EvalConfig) -> EvaluationResult:
    """Load the policy, make the environments, and run the episodes.

    Raises:
        SmolactError: what loading, the environment and the episodes raise; `FeatureError` if they do not fit together.
    """
    from smolact.envs.factory import make_env
    from smolact.evaluation.rollout import evaluate
    from smolact.policies.factory import load_policy
    from smolact.training.preflight import check_cameras, check_env_sizes
    from smolact.types import is_image_key

    overrides = dict(config.policy.settings)
    device = overrides.pop("device", None)
    loaded = load_policy(
        str(config.policy.path), device=device, stats_key=config.policy.stats_key, **overrides
    )
    with make_env(
        str(config.env.type),
        config.eval.batch_size,
        task=config.task or config.env.task,
        mapping=config.env.mapping,
        render=config.n_videos > 0,
        **config.env.kwargs,
    ) as environments:
        offered = environments.features
        cameras = {key: feature for key, feature in offered.items() if is_image_key(key)}
        check_cameras(loaded.policy.config, cameras, {}, where="the environment")
        check_env_sizes(loaded.policy.config, offered)
        return evaluate(
            loaded.policy,
            loaded.preprocess,
            loaded.postprocess,
            environments,
            n_episodes=config.eval.n_episodes,
            seed=config.seed,
            video_folder=None if config.output_dir is None else config.output_dir / "videos",
            n_videos=config.n_videos,
            on_episode=_Counter(config.eval.n_episodes),
        )


class _Counter:
    """Counts episodes on a terminal."""

    def __init__(self, episodes: int) -> None:
        self.episodes, self.done, self.successes = episodes, 0, 0

    def __call__(self, result: EpisodeResult) -> None:
        self.done += 1
        self.successes += result.success
        if sys.stderr.isatty():
            end = "\n" if self.done == self.episodes else ""
            sys.stderr.write(f"\r{self.done}/{self.episodes} episodes, {self.successes} succeeded{end}")


def _summary(result: EvaluationResult) -> str:
    rows: Mapping[str, object] = {"success": result.success, **result.per_task}
    width = max(map(len, rows))
    lines = [f"{name.ljust(width)}  {rate}" for name, rate in rows.items()]
    lines.append(
        f"mean length {result.mean_steps:.0f} steps; {result.n_action_steps} of {result.chunk_size} actions of each chunk "
        f"were executed; {result.seconds:.0f} s; seed {result.seed}"
    )
    return "\n".join(lines) + "\n"

"""`smolact eval`: success rates of a policy in an environment."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolact.cli.command import command
from smolact.cli.main import aligned, print_errors_at_once
from smolact.cli.progress import announce
from smolact.cli.servers import (
    CHECK_NAMES,
    RENAME_MAP,
    ChosenPolicy,
    announce_policy,
    engine_settings,
    is_server,
    load_chosen,
    load_from_server,
)
from smolact.errors import ConfigError, FeatureError
from smolact.settings import setting
from smolact.training.sections import EnvSection, EvalSection

if TYPE_CHECKING:
    from smolact.envs.batch import EnvBatch
    from smolact.evaluation.conditions import Condition
    from smolact.evaluation.suite import Results, Shard
    from smolact.runtime.policy import Policy

USAGE = "smolact eval --policy.path=CHECKPOINT --env.type=tabletop [--eval.n_episodes=50] [--output_dir=FOLDER] [--NAME=VALUE …]"


@dataclass
class EvalConfig:
    """Settings of `smolact eval`."""

    policy: ChosenPolicy = field(default_factory=ChosenPolicy)
    compare: list[str] | None = setting(
        None,
        "Further checkpoints, tried in the same episodes and compared with --policy.path by a paired test.",
    )
    env: EnvSection = field(default_factory=EnvSection)
    eval: EvalSection = field(default_factory=EvalSection)
    rename_map: dict[str, str] = setting(dict, RENAME_MAP)
    check_names: bool = setting(True, CHECK_NAMES)
    seed: int = setting(1000, "Seed of the episodes and of what the policy draws.")
    task: str | None = setting(
        None, "Tell the policy this, whatever the environment asks for (as --env.task)."
    )
    language: bool = setting(
        True,
        "Measure, beside what is asked, what instructions are worth: swapped, in new words, new combinations, empty, nonsense. "
        "Only in environments that know their scenes' goals.",
    )
    engine: bool = setting(
        True,
        "Predict with the policy's engine: the same actions, sooner. --engine=false takes the policy itself.",
    )
    n_videos: int = setting(
        6,
        "How many episodes to film for the report, successes and failures in turn; 0 for an environment that draws nothing.",
    )
    cpu_processes: int | None = setting(
        None,
        "Processes that share the episodes, each with one thread. When null, as many as there are cores for small policies on a "
        "CPU, and one otherwise.",
    )
    output_dir: Path | None = setting(
        None,
        "Where every episode is noted as it ends, and metrics.json, report.html and videos go. Given again, what is there is not played again.",
    )

    @property
    def policies(self) -> list[str]:
        """All checkpoints: --policy.path and --compare."""
        return [str(self.policy.path), *(self.compare or ())]


@command(EvalConfig, USAGE)
def run(config: EvalConfig) -> int:
    """Evaluate with the settings and print the results."""
    if config.policy.path is None or config.env.type is None:
        missing = "--policy.path=CHECKPOINT" if config.policy.path is None else "--env.type=tabletop"
        raise ConfigError(f"`smolact eval` needs {missing}: a policy and an environment to try it in.")
    for name in config.policies:  # before anything is written
        engine_settings(name, config.policy, config.rename_map, engine=config.engine)
    n_processes, device = config.cpu_processes, config.policy.settings.get("device")
    if n_processes is not None and n_processes < 1:
        raise ConfigError(
            f"--cpu_processes={n_processes}: expected at least 1, and no more than the episodes of a condition "
            f"(--eval.n_episodes={config.eval.n_episodes}), which they share."
        )
    if n_processes is not None and n_processes > 1 and device not in (None, "cpu"):
        raise ConfigError(f"--cpu_processes={n_processes} is for a CPU, and --policy.device={device}.")
    if len(set(config.policies)) < len(config.policies):
        raise ConfigError("--compare names a checkpoint twice. Name each once.")
    with contextlib.ExitStack() as stack:
        if config.output_dir is not None and int(os.environ.get("RANK", 0)) == 0:
            from smolact.lock import writing_into

            stack.enter_context(writing_into(config.output_dir, instead="choose another --output_dir"))
        announce_policy(config.policy.path)
        results = evaluate_checkpoints(config)
        if results is None:  # only the first of several processes prints
            return 0
        sys.stdout.write(summary(results))
        if config.output_dir is not None:
            from smolact import durable
            from smolact.evaluation.conditions import PLAIN
            from smolact.evaluation.lerobot_results import EVAL_INFO, eval_info
            from smolact.evaluation.suite import to_json

            path = config.output_dir / "metrics.json"
            durable.write_json(path, to_json(results))
            plain = results[config.policies[0]][PLAIN]
            durable.write_json(config.output_dir / EVAL_INFO, eval_info(plain, str(config.env.type)))
            sys.stdout.write(f"\n{path}\n{config.output_dir / 'report.html'}\n")
    return 0


def evaluate_checkpoints(config: EvalConfig) -> Results | None:
    """Load the policies, make the environments and run the episodes. Returns None in all processes but the first.

    Raises:
        SmolactError: errors of loading, the environment and the episodes; `FeatureError` if policy and environment do not fit.
    """
    from smolact.cli.eval_processes import Processes, n_processes_for
    from smolact.cli.eval_progress import EvalProgress
    from smolact.evaluation.conditions import PLAIN, conditions_for
    from smolact.evaluation.shards import play_shards
    from smolact.evaluation.suite import EpisodeLog, collect, run_suite

    processes = Processes(config.cpu_processes, config.output_dir)
    folder = config.output_dir
    render = folder is not None and config.n_videos > 0
    with (
        contextlib.ExitStack() as stack,
        _make_environments(config, render=render) as environments,
        print_errors_at_once(),
    ):
        each, n_tasks = config.eval.n_episodes, max(1, len(environments.tasks))
        n_episodes, device = each * n_tasks, config.policy.settings.get("device")
        n_processes = n_processes_for(config.cpu_processes, config.policies, device, each, n_tasks, processes)
        if n_processes > 1 and folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="smolact-")))
        log = EpisodeLog(folder, _settings(config), processes.shard)

        def load(name: str) -> Policy:
            if name != config.policy.path:
                announce_policy(name)
            return _load(name, config, environments, processes.device, stack)

        conditions = conditions_for(environments) if config.language else []
        facts = {name: _facts(name, config) for name in config.policies}
        names = [PLAIN, *(condition.name for condition in conditions)]
        with contextlib.ExitStack() as shown:
            progress = (
                EvalProgress(config.policies, names, n_episodes, log, shown)
                if processes.shard.rank == 0
                else None
            )
            if n_processes > 1 and folder is not None and progress is not None and not progress.is_complete:
                play_shards(ShardPlayer(config, folder), n_processes, log, progress.reread)
            else:
                run_suite(
                    config.policies,
                    load,
                    environments,
                    conditions,
                    log,
                    n_episodes=config.eval.n_episodes,
                    seed=config.seed,
                    on_episode=None if progress is None else progress.on_episode,
                    on_step=None if progress is None else progress.on_step,
                )
        processes.wait()
        if processes.shard.rank:
            return None
        results = collect(config.policies, names, log, n_episodes, config.seed, facts)
        if config.output_dir is not None:
            write_page(config, config.output_dir, results, environments, conditions, load)
    return results


@dataclass(frozen=True)
class ShardPlayer:
    """Plays one shard of an evaluation's episodes with its own policies and environments."""

    config: EvalConfig
    folder: Path

    def __call__(self, shard: Shard) -> None:
        """Play the episodes of `shard` and log each one."""
        from smolact.evaluation.conditions import conditions_for
        from smolact.evaluation.suite import EpisodeLog, run_suite

        config = self.config
        log = EpisodeLog(self.folder, _settings(config), shard)
        with contextlib.ExitStack() as stack, _make_environments(config, render=False) as environments:
            run_suite(
                config.policies,
                lambda name: _load(name, config, environments, "cpu", stack),
                environments,
                conditions_for(environments) if config.language else [],
                log,
                n_episodes=config.eval.n_episodes,
                seed=config.seed,
            )


def _make_environments(config: EvalConfig, *, render: bool) -> EnvBatch:
    """Make the environments of one process."""
    from smolact.envs.factory import make_env

    return make_env(
        str(config.env.type),
        config.eval.n_environments(config.env),
        task=config.env.task,
        instruction=config.task,
        mapping=config.env.mapping,
        render=render,
        **config.env.arguments,
    )


def write_page(
    config: EvalConfig,
    folder: Path,
    results: Results,
    environments: EnvBatch,
    conditions: Sequence[Condition],
    load: Callable[[str], Policy],
) -> None:
    """Write `report.html`, with videos of some of the first policy's episodes."""
    from smolact.evaluation.report import write_report
    from smolact.evaluation.showcase import showcase
    from smolact.pages import command_and_versions, flat_settings

    run_info = command_and_versions()
    shown = []
    if config.n_videos:
        announce("Filming episodes for the report …")
        policy = load(config.policies[0])
        shown = showcase(policy, environments, results[config.policies[0]], conditions, config.n_videos)
    write_report(
        folder,
        results,
        title=f"{Path(config.policies[0]).name} in {config.env.type}",
        shown=shown,
        fps=environments.fps or 10,
        commands=[run_info.pop("command")],
        facts={"policies": ", ".join(config.policies), **run_info},
        settings=dict(flat_settings(_policy_settings(config.policies[0], config))),
    )


def _settings(config: EvalConfig) -> dict[str, Any]:
    """Return the settings that determine an episode's result."""
    names = [str(Path(name).resolve()) if Path(name).exists() else name for name in config.policies]
    settings = {key: str(value) for key, value in config.policy.settings.items() if key != "device"}
    quantized = [name for name in ("int8", "fp8") if getattr(config.policy, name)]
    return {
        "policies": names,
        "policy settings": {**settings, **dict.fromkeys(quantized, "True")},
        "stats_key": config.policy.stats_key,
        "stats": config.policy.stats or None,
        "rename_map": config.rename_map or None,
        "environment": config.env.type,
        "task": config.task or config.env.task,
        "selected tasks": config.env.task if config.task is not None else None,
        "mapping": None if config.env.mapping is None else config.env.mapping.read_text(),
        "environment settings": {key: str(value) for key, value in config.env.arguments.items()},
        "seed": config.seed,
    }


def _overrides(config: EvalConfig) -> dict[str, Any]:
    return {key: value for key, value in config.policy.settings.items() if key != "device"}


def _load(
    name: str,
    config: EvalConfig,
    environments: EnvBatch,
    device: str | None,
    stack: contextlib.ExitStack,
) -> Policy:
    """Load a policy and check that it fits the environment; `stack` closes it."""
    import torch

    from smolact.policies.fit import check_cameras, check_env_names, check_env_sizes
    from smolact.runtime.local import LocalPolicy
    from smolact.runtime.schema import config_of
    from smolact.types import is_image_key

    policy = load_chosen(
        config.policy,
        path=name,
        device=device,
        # float32 as the policy itself, so that both play the same episodes
        engine={"dtype": torch.float32} if config.engine else None,
        rename_map=config.rename_map,
        threads=config.cpu_processes == 1,
    )
    stack.callback(policy.close)
    is_local = isinstance(policy, LocalPolicy)
    names = policy.schema.rename_map if is_local else {}
    settings = policy.config if isinstance(policy, LocalPolicy) else config_of(policy.schema)
    features = {names.get(key, key): feature for key, feature in environments.features.items()}
    cameras = {key: feature for key, feature in features.items() if is_image_key(key)}
    check_cameras(settings, cameras, names, where="the environment")
    check_env_sizes(settings, features, names)
    any_names = policy.schema.any_names or not config.check_names
    try:
        check_env_names(settings, environments[0].robot_names, names, any_names=any_names)
    except FeatureError as error:
        raise FeatureError(
            f"{error}\nTake the policy that was trained on this robot. If the joints are the same under other names: "
            "--check_names=false."
        ) from error
    return policy


def _policy_settings(name: str, config: EvalConfig) -> dict[str, Any]:
    from smolact.policies.configuration import CONFIG_FILE, find_policy, read_config_file
    from smolact.runtime.schema import config_of

    if is_server(name):
        served = load_from_server(name, config.policy.settings)
        served.close()
        return config_of(served.schema).to_dict()
    return {**read_config_file(find_policy(name, patterns=[CONFIG_FILE])), **_overrides(config)}


def _facts(name: str, config: EvalConfig) -> dict[str, int | None]:
    values = _policy_settings(name, config)
    return {key: values.get(key) for key in ("n_action_steps", "chunk_size", "num_steps")}


def summary(results: Results) -> str:
    """Return the results as text for a terminal."""
    from smolact.evaluation.conditions import PLAIN
    from smolact.evaluation.metrics import Comparison

    first = next(iter(results))
    lines: list[str] = []
    for name, by_condition in results.items():
        if len(results) > 1:
            lines += ["", name]
        rows: list[tuple[str, object]] = []
        for condition, result in by_condition.items():
            rows.append((condition.replace("_", " "), result.over_tasks or result.success))
            rows += [(f"  {name}", group) for name, group in result.per_group.items() if len(group.tasks) > 1]
            if condition == PLAIN and len(result.per_task) > 1:
                rows += [(f"  {kind}", rate) for kind, rate in result.per_task.items()]
            if result.other_goal is not None:
                rows.append(("  the scene's own goal", result.other_goal))
        lines += aligned(rows)
        if name != first:
            compared = Comparison.of(results[first][PLAIN], by_condition[PLAIN])
            lines.append(
                f"against {first}: {compared.difference:+.0%}, p = {compared.p_value:.2g} (McNemar, the same episodes)"
            )
        plain = by_condition[PLAIN]
        seconds = sum(result.seconds for result in by_condition.values())
        steps = "" if plain.num_steps is None else f"{plain.num_steps} denoising steps; "
        lines.append(
            f"mean length {plain.mean_steps:.0f} steps; {plain.n_action_steps} of {plain.chunk_size} actions of each chunk "
            f"were executed; {steps}{seconds:.0f} s; seed {plain.seed}"
        )
        if plain.over_tasks is not None and plain.n_action_steps == plain.chunk_size != 1:
            lines.append(
                "Whole chunks were executed without a look in between, which costs success on benchmarks: try "
                "--policy.n_action_steps=10."
            )
    return "\n".join(lines).lstrip("\n") + "\n"

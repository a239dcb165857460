"""`smolact dataset make-demos`: an environment's scripted expert shows how it is done, as a dataset."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smolact.cli.command import command
from smolact.cli.progress import progress_bar
from smolact.errors import ConfigError
from smolact.settings import at_least, setting
from smolact.training.sections import EnvSection

USAGE = "smolact dataset make-demos --env.type=tabletop --episodes=200 --output=FOLDER"


@dataclass
class MakeDemosConfig:
    """Settings of `smolact dataset make-demos`."""

    env: EnvSection = field(default_factory=EnvSection)
    episodes: int = setting(200, "How many episodes.")
    output: Path | None = setting(None, "The new dataset's folder.")
    seed: int = setting(0, "Of the scenes and of the disturbances.")
    noise: bool = setting(
        True,
        "Disturb what the expert does, now and then with a kick, and record what it wanted: so the demonstrations show the "
        "way back, too.",
    )
    only_successes: bool = setting(True, "Leave failed episodes out, and make others in their place.")
    processes: int = setting(1, "Make so many episodes at once; the dataset is the same.")
    video: bool = setting(True, "Cameras as video; false: as images in the tables, for small pictures.")

    def __post_init__(self) -> None:
        at_least("episodes", self.episodes, 1)
        at_least("processes", self.processes, 1)


@command(MakeDemosConfig, USAGE)
def run(config: MakeDemosConfig) -> None:
    """Record the demonstrations and print the expert's success rate."""
    if config.env.type is None or config.output is None:
        missing = "--env.type=tabletop" if config.env.type is None else "--output=FOLDER"
        raise ConfigError(f"`smolact dataset make-demos` needs {missing}: {USAGE}")

    from smolact.envs.demonstrations import ActionNoise, demonstrations, demonstrations_by_processes
    from smolact.envs.experts import expert_for
    from smolact.envs.factory import make_env
    from smolact.evaluation.metrics import SuccessRate
    from smolact.recording.demonstrations import record_demonstrations

    name = config.env.type
    expert = expert_for(name)
    env_settings = {"task": config.env.task, "mapping": config.env.mapping, **config.env.arguments}
    outcomes: list[bool] = []
    with make_env(name, **env_settings) as envs, progress_bar(config.episodes, "episodes") as advance:

        def count_attempt(success: bool) -> None:
            outcomes.append(success)
            advance(0, f"the expert succeeded in {sum(outcomes) / len(outcomes):.0%}")

        options: dict[str, Any] = {
            "seed": config.seed,
            "noise": getattr(expert, "noise", ActionNoise()) if config.noise else None,
            "only_successes": config.only_successes,
            "on_attempt": count_attempt,
        }
        frames = record_demonstrations(
            demonstrations(envs[0], expert, config.episodes, **options)
            if config.processes == 1
            else demonstrations_by_processes(
                name, config.episodes, config.processes, settings=env_settings, **options
            ),
            config.output,
            fps=envs.fps or 10,
            use_videos=config.video,
            robot_type=name,
            robot_names=envs[0].robot_names,
            on_episode=lambda _: advance(),
        )
    sys.stdout.write(
        f"{config.output}: {config.episodes} episodes, {frames} frames. "
        f"The expert succeeded in {SuccessRate.of(outcomes)}.\n"
    )

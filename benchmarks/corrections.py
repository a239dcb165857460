"""What corrections are worth: rounds of them against as many frames of new demonstrations, and against more training alone.

    python benchmarks/corrections.py --demo=outputs/demo --folder=outputs/corrections --output=benchmarks/results/corrections_tabletop.json \
        --plot=docs/images/corrections.png [--rounds=3] [--seeds 0 1 2] [--episodes=40] [--steps=1000] [--evaluated=100]

Round 0 is the policy of a demo of the tabletop, whose scripted expert is the person. In every further round the policy drives
in new scenes, the expert takes over when it foresees a failure, and the policy is fine-tuned with what the expert did. Beside it
two controls are fine-tuned as long: with new demonstrations of as many frames as the expert drove, and with no new data. Half of
the samples are the demo's demonstrations, always; the new data of all rounds share the other half. Every policy is evaluated in
the same scenes. What is there already in the folder is not done again, so it can be stopped and gone on with.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
import numpy as np
import torch

from smolact.cli.demo import DEMO_SETTINGS, NOISE_DRAWS
from smolact.datasets.reader import LeRobotDataset
from smolact.envs.demonstrations import ActionNoise, Demonstration, demonstrations
from smolact.envs.experts import expert_for
from smolact.envs.factory import make_env
from smolact.evaluation.metrics import SuccessRate
from smolact.recording.demonstrations import record_demonstrations

matplotlib.use("Agg")
from matplotlib import pyplot

ENV = "tabletop"
KWARGS = DEMO_SETTINGS[ENV].env_settings
CORRECTIONS, DEMONSTRATIONS, LONGER = "corrections", "demonstrations", "no new data"
ARMS = (CORRECTIONS, DEMONSTRATIONS, LONGER)
OPEN = ("--robot.max_step=0", "--robot.limits={action_0: [-9999, 9999], action_1: [-9999, 9999]}")
"""The gate lets every action pass: policies are compared, and the simulation can't break."""
TRAINED = (
    "--lr_multipliers={vlm_with_expert.vlm: 0.5}",
    f"--noise_draws={NOISE_DRAWS}",
    "--num_workers=0",
    "--save_freq=500",
    "--keep_last=1",
    "--report=false",
    "--tensorboard.enable=false",
)


class Rounds:
    """The rounds of one seed."""

    def __init__(self, arguments: argparse.Namespace, seed: int) -> None:
        self.arguments, self.seed = arguments, seed
        self.demo: Path = arguments.demo
        self.folder: Path = arguments.folder / f"seed_{seed}"
        self.folder.mkdir(parents=True, exist_ok=True)

    def run(self) -> dict[str, list[dict[str, Any]]]:
        """Do what is missing; returns the figures of every arm and round."""
        found: dict[str, list[dict[str, Any]]] = {arm: [self.evaluated(ARMS[0], 0)] for arm in ARMS}
        for number in range(1, self.arguments.rounds + 1):
            corrected = self.corrected(number)
            new = {CORRECTIONS: corrected, DEMONSTRATIONS: self.demonstrated(number, corrected["new_frames"])}
            for arm in ARMS:
                self.trained(arm, number)
                found[arm].append(new.get(arm, {}) | self.evaluated(arm, number))
        return found

    def path(self, arm: str, number: int, kind: str) -> Path:
        """The folder of a dataset or a run."""
        return self.folder / f"{arm.replace(' ', '_')}_{number}_{kind}"

    def policy(self, arm: str, number: int) -> Path:
        """The run of an arm's policy after a round."""
        return self.demo / "train" if number == 0 else self.path(arm, number, "run")

    def corrected(self, number: int) -> dict[str, Any]:
        """The policy of the last round drives, and the expert corrects it."""
        root = self.path(CORRECTIONS, number, "data")

        def make() -> dict[str, Any]:
            shutil.rmtree(root, ignore_errors=True)
            smolact(
                ["rollout", "--robot.type=sim", f"--robot.env={ENV}", f"--robot.kwargs={json.dumps(KWARGS)}",
                 f"--robot.seed={self.scenes(number)}", *OPEN, f"--policy.path={self.policy(CORRECTIONS, number - 1)}",
                 "--policy.device=cpu", "--teleop.type=expert", f"--corrections={root}", "--realtime=false", "--video=false",
                 f"--episodes={self.arguments.episodes}"]
            )  # fmt: skip
            dataset = LeRobotDataset(root)
            marks = dataset.windows("intervention", 1).ravel()
            log = json.loads((root / "meta" / "smolact_recording.json").read_text(encoding="utf-8"))
            return {
                "episodes": dataset.num_episodes,
                "frames": len(marks),
                "new_frames": int(marks.sum()),
                "takeovers": int((np.diff(marks.astype(int), prepend=0) == 1).sum()),
                "success_with_expert": fmean(bool(one["success"]) for one in log["episodes"]),
            }

        return kept(root.with_suffix(".json"), make)

    def demonstrated(self, number: int, frames: int) -> dict[str, Any]:
        """New demonstrations of as many frames as the expert drove, and at most an episode more."""
        root = self.path(DEMONSTRATIONS, number, "data")

        def make() -> dict[str, Any]:
            shutil.rmtree(root, ignore_errors=True)
            with make_env(ENV, **KWARGS) as envs:
                episodes = demonstrations(
                    envs[0], expert_for(ENV), 10**6, seed=self.scenes(number), noise=ActionNoise()
                )
                with closing(episodes):
                    written = record_demonstrations(
                        until(episodes, frames), root, fps=envs.fps or 10, use_videos=False
                    )
            return {"episodes": LeRobotDataset(root).num_episodes, "new_frames": written}

        return kept(root.with_suffix(".json"), make)

    def trained(self, arm: str, number: int) -> None:
        """Fine-tune the arm's policy of the last round."""
        run = self.path(arm, number, "run")
        datasets = (
            {} if arm == LONGER else {self.path(arm, one, "data"): 1 / number for one in range(1, number + 1)}
        )
        datasets = {path: share for path, share in datasets.items() if self.has_frames(path)}

        def make() -> dict[str, Any]:
            if (run / "checkpoints" / "last").exists():
                smolact(["train", "--resume=true", f"--output_dir={run}"])
                return {}
            shutil.rmtree(run, ignore_errors=True)
            mix = {str(self.demo / "dataset"): 1.0, **{str(path): share for path, share in datasets.items()}}
            data = (
                [f"--dataset.mix={json.dumps(mix)}"]
                if datasets
                else [f"--dataset.root={self.demo / 'dataset'}"]
            )
            data += ["--dataset.corrections_weight=" + self.arguments.weight] * (
                arm == CORRECTIONS and bool(datasets)
            )
            smolact(
                ["train", f"--policy.path={self.policy(arm, number - 1)}", "--policy.device=cpu", *data, *TRAINED,
                 f"--policy.optimizer_lr={self.arguments.lr}", f"--policy.scheduler_decay_lr={self.arguments.lr / 100}",
                 f"--batch_size={self.arguments.batch}", f"--steps={self.arguments.steps}", f"--seed={self.seed}",
                 f"--output_dir={run}"]
            )  # fmt: skip
            return {}

        kept(run.with_suffix(".json"), make)

    def has_frames(self, data: Path) -> bool:
        """Whether the expert drove at all in a dataset."""
        return bool(json.loads(data.with_suffix(".json").read_text(encoding="utf-8"))["new_frames"])

    def evaluated(self, arm: str, number: int) -> dict[str, Any]:
        """The success of a policy without the expert, in scenes that are the same for all."""
        output = self.path("start" if number == 0 else arm, number, "evaluation")

        def make() -> dict[str, Any]:
            smolact(
                ["eval", f"--policy.path={self.policy(arm, number)}", "--policy.device=cpu", f"--env.type={ENV}",
                 f"--env.kwargs={json.dumps(KWARGS)}", f"--eval.n_episodes={self.arguments.evaluated}", "--n_videos=0",
                 "--language=false", "--cpu_processes=1", f"--output_dir={output}"]
            )  # fmt: skip
            metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
            return SuccessRate.of(bool(one["success"]) for one in metrics["results"]).to_dict()

        return kept(output.with_suffix(".json"), make)

    def scenes(self, number: int) -> int:
        """The seed of a round's scenes, of no other round and no evaluation."""
        return 10_000 * (self.seed + 1) + number


def main() -> None:
    """Do what is missing, and write figures and picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--demo", type=Path, required=True, help="the output of `smolact demo`: data and policy"
    )
    parser.add_argument("--folder", type=Path, required=True, help="for datasets, runs and evaluations")
    parser.add_argument("--output", type=Path, required=True, help="the figures, as JSON")
    parser.add_argument("--plot", type=Path, help="success over the rounds, as PNG")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--episodes", type=int, default=40, help="that are corrected in a round")
    parser.add_argument("--steps", type=int, default=1000, help="of every fine-tuning")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=3e-4, help="of every fine-tuning; a third of the demo's")
    parser.add_argument("--weight", default="only", help="--dataset.corrections_weight")
    parser.add_argument("--evaluated", type=int, default=100, help="episodes of every evaluation")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv])
        .replace(str(arguments.folder), "FOLDER")
        .replace(str(arguments.output), "OUTPUT")
        .replace(str(arguments.plot), "PLOT")
        .replace(str(arguments.demo), "DEMO"),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}; one thread a run",
        "settings": {
            name: getattr(arguments, name)
            for name in ("rounds", "episodes", "steps", "batch", "lr", "weight", "evaluated")
        },
        "seeds": {},
    }
    for seed in arguments.seeds:
        figures["seeds"][str(seed)] = Rounds(arguments, seed).run()
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if arguments.plot:
        draw(figures, arguments.plot)


def until(episodes: Iterator[Demonstration], frames: int) -> Iterator[Demonstration]:
    """Episodes until they have so many frames, and one at least."""
    count = 0
    for episode in episodes:
        yield episode
        count += len(episode)
        if count >= frames:
            return


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` gives, once."""
    if not path.exists():
        made = make()
        path.with_suffix(".part").write_text(json.dumps(made, indent=2), encoding="utf-8")
        path.with_suffix(".part").replace(path)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def smolact(words: Sequence[str]) -> None:
    """Run a command on one thread."""
    done = subprocess.run(
        [sys.executable, "-m", "smolact", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    if done.returncode:
        raise SystemExit(f"smolact {words[0]} ended with {done.returncode}.")


def draw(figures: dict[str, Any], path: Path) -> None:
    """Success over the rounds: the mean of the seeds, and each seed."""
    figure, axes = pyplot.subplots(figsize=(6, 3.6), dpi=110, layout="constrained")
    for arm in ARMS:
        rates = np.array(
            [[100 * one["success_rate"] for one in seed[arm]] for seed in figures["seeds"].values()]
        )
        rounds = np.arange(rates.shape[1])
        (line,) = axes.plot(rounds, rates.mean(0), "o-", label=arm)
        axes.plot(rounds, rates.T, color=line.get_color(), alpha=0.25, linewidth=1)
    axes.set(xlabel="round", ylabel="success, %", ylim=(0, 100), xticks=rounds)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    main()

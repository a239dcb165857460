"""PushT, end to end: the expert's demonstrations, every policy trained on them with the same budget, and what each reaches.

    python benchmarks/pusht.py --folder=outputs/pusht --output=benchmarks/results/pusht_cpu_2_cores.json --plot=docs/images/pusht.png

Each run has the same demonstrations, steps and batch, on one thread; `--jobs` of them at once. What is there already in
the folder is not done again, so it can be stopped and gone on with. Needs the extra: pip install "smolact[pusht]".
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import NormalDist, fmean, stdev
from typing import Any

import matplotlib
import numpy as np
import torch

from smolact.envs.demonstrations import ActionNoise, demonstrations
from smolact.envs.experts import expert_for
from smolact.envs.factory import env_id, make_env
from smolact.evaluation.metrics import SuccessRate
from smolact.evaluation.rollout import plan_episodes
from smolact.training.metrics import read_metrics

matplotlib.use("Agg")
from matplotlib import pyplot

CHUNK, EXECUTED, BATCH = 16, 8, 32
COMMON = (
    "--num_workers=0",
    "--save_freq=1000",
    "--keep_last=1",
    "--report=false",
    "--tensorboard.enable=false",
    "--seed=0",
    "--env.type=pusht",
    f"--policy.chunk_size={CHUNK}",
    f"--policy.n_action_steps={EXECUTED}",
    f"--batch_size={BATCH}",
)
SMOLVLA = (
    "--policy.type=smolvla",
    "--policy.vlm_model_name=tiny",
    "--policy.train_expert_only=false",
    "--policy.freeze_vision_encoder=false",
    "--lr_multipliers={vlm_with_expert.vlm: 0.5}",
    "--noise_draws=2",
    "--policy.resize_imgs_with_padding=[64,64]",
    "--policy.max_state_dim=8",
    "--policy.max_action_dim=8",
    "--policy.optimizer_lr=1e-3",
    "--policy.scheduler_decay_lr=1e-5",
    "--policy.scheduler_warmup_steps=100",
)
SMOLANDFAST = (
    "--policy.type=smolandfast",
    "--policy.vlm_checkpoint=tiny",
    "--policy.scale_factor=2",
    "--policy.freeze_vision_encoder=false",
    "--policy.vision_model_optimizer_lr=5e-4",
    "--policy.text_model_optimizer_lr=1e-3",
    "--policy.connector_optimizer_lr=1e-3",
    "--policy.optimizer_lr=1e-3",
    "--policy.scheduler_decay_lr=1e-5",
    "--policy.scheduler_warmup_steps=100",
)
RUNS = {
    "smolvla": SMOLVLA,
    "smolandfast, fast": (
        *SMOLANDFAST,
        "--policy.action_tokens=fast",
        "--policy.fast_tokenizer_path=TOKENIZER",
    ),
    "smolandfast, bins": (*SMOLANDFAST, "--policy.action_tokens=bins"),
    "smolandfast, text": (*SMOLANDFAST, "--policy.action_tokens=text"),
}


def main() -> None:
    """Do what is missing, and write figures and picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="for demonstrations, runs and evaluations")
    parser.add_argument("--output", type=Path, required=True, help="the figures, as JSON")
    parser.add_argument("--plot", type=Path, help="the learning curves, as PNG")
    parser.add_argument("--episodes", type=int, default=300, help="demonstrations")
    parser.add_argument("--steps", type=int, default=4000, help="of every training")
    parser.add_argument("--evaluated", type=int, default=64, help="episodes, of each policy at the end")
    parser.add_argument("--along_the_way", type=int, default=16, help="episodes of an evaluation in training")
    parser.add_argument("--expert_episodes", type=int, default=128, help="in which the expert is counted")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, each on one thread")
    parser.add_argument("--runs", nargs="*", choices=RUNS, default=list(RUNS))
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    demos = demonstrate(folder, arguments.episodes, arguments.jobs)
    fit_tokenizer(folder)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        found = dict(
            zip(arguments.runs, pool.map(lambda name: run(name, arguments), arguments.runs), strict=True)
        )
    figures = {
        "command": " ".join(["python", *sys.argv]).replace(str(folder), "FOLDER"),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}; one thread a run",
        "demonstrations": demos,
        "expert": kept(folder / "expert.json", lambda: expert(arguments.expert_episodes)),
        "standing still": kept(folder / "still.json", lambda: standing_still(arguments.evaluated)),
        "budget": {
            "steps": arguments.steps,
            "batch_size": BATCH,
            "chunk_size": CHUNK,
            "n_action_steps": EXECUTED,
        },
        "runs": found,
    }
    arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if arguments.plot:
        draw(figures, arguments.plot)


def demonstrate(folder: Path, episodes: int, processes: int) -> dict[str, Any]:
    """The dataset that every run learns from."""
    dataset = folder / "demonstrations"

    def make() -> dict[str, Any]:
        words = [
            "dataset", "make-demos", "--env.type=pusht", f"--episodes={episodes}", f"--processes={processes}",
            "--video=false", f"--output={dataset}",
        ]  # fmt: skip
        said, seconds = smolact(words)
        info = json.loads((dataset / "meta" / "info.json").read_text(encoding="utf-8"))
        return {
            "command": shown(words, folder),
            "episodes": info["total_episodes"],
            "frames": info["total_frames"],
            "cpu_seconds": round(seconds),
            "said": said.strip().rpartition(": ")[2] if said else "",
        }

    return kept(folder / "demonstrations.json", make)


def fit_tokenizer(folder: Path) -> None:
    """FAST's tokens, from the same demonstrations."""
    words = [
        "train-tokenizer", f"--dataset.root={folder / 'demonstrations'}", f"--chunk_size={CHUNK}", "--vocab_size=256",
        f"--output={folder / 'tokenizer'}",
    ]  # fmt: skip
    if not (folder / "tokenizer").exists():
        (folder / "tokenizer.txt").write_text(smolact(words)[0], encoding="utf-8")


def run(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train one policy and evaluate it."""
    folder: Path = arguments.folder
    here = folder / name.replace(", ", "_")

    def train() -> dict[str, Any]:
        words = [
            "train", *(word.replace("TOKENIZER", str(folder / "tokenizer")) for word in RUNS[name]), *COMMON,
            f"--dataset.root={folder / 'demonstrations'}", f"--steps={arguments.steps}", f"--log_freq={arguments.steps // 50}",
            f"--eval_freq={arguments.steps // 3 + 1}", f"--eval.n_episodes={arguments.along_the_way}",
            f"--eval.batch_size={arguments.along_the_way}", f"--output_dir={here}",
        ]  # fmt: skip
        began = time.monotonic()
        _, seconds = smolact(words)
        wall = round(time.monotonic() - began)
        return {"command": shown(words, folder), "cpu_seconds": round(seconds), "wall_seconds": wall}

    def evaluate() -> dict[str, Any]:
        words = [
            "eval", f"--policy.path={here / 'checkpoints' / 'last' / 'pretrained_model'}", "--env.type=pusht",
            f"--eval.n_episodes={arguments.evaluated}", "--eval.batch_size=32", "--n_videos=0", f"--output_dir={here}_eval",
        ]  # fmt: skip
        _, seconds = smolact(words)
        metrics = json.loads((Path(f"{here}_eval") / "metrics.json").read_text(encoding="utf-8"))
        episodes = metrics["results"]
        return {
            "evaluation_cpu_seconds": round(seconds),
            **result([one["success"] for one in episodes], [one["max_reward"] for one in episodes]),
        }

    trained = kept(folder / f"{here.name}.train.json", train)
    evaluated = kept(folder / f"{here.name}.eval.json", evaluate)
    curves = {
        key: {"steps": series.steps.tolist(), "values": [round(value, 4) for value in series.values.tolist()]}
        for key, series in read_metrics(here).items()
        if key in ("loss", "eval/max_reward", "eval/success_rate")
    }
    return {**trained, **evaluated, "curves": curves}


def expert(episodes: int) -> dict[str, Any]:
    """How often the expert succeeds, undisturbed and disturbed."""
    found = {}
    for name, noise in (("undisturbed", None), ("disturbed", ActionNoise())):
        began = time.process_time()
        with make_env("pusht", obs_type="environment_state_agent_pos") as envs:
            made = list(
                demonstrations(
                    envs[0], expert_for(env_id("pusht")), episodes, seed=1, noise=noise, only_successes=False
                )
            )
        steps = [len(one) for one in made]
        found[name] = {
            **result([one.success for one in made], [float(one.frames["next.reward"].max()) for one in made]),
            "steps": {
                "mean": round(fmean(steps), 1),
                "median": float(np.median(steps)),
                "largest": max(steps),
            },
            "cpu_seconds_an_episode": round((time.process_time() - began) / episodes, 2),
        }
    return found


def standing_still(episodes: int) -> dict[str, Any]:
    """What the evaluation's episodes have covered already when they begin: the floor of every figure here."""
    rewards = []
    with make_env("pusht", obs_type="environment_state_agent_pos") as envs:
        for plan in plan_episodes(episodes, 0):
            seen, _ = envs[0].reset(seed=plan.seed)
            rewards.append(envs[0].step(seen["observation.state"])[1])
    return result([False] * episodes, rewards)


def result(successes: Sequence[bool], largest: Sequence[float]) -> dict[str, Any]:
    """Both figures with their 95% intervals: Wilson's, and the normal one of a mean."""
    mean = fmean(largest)
    half = NormalDist().inv_cdf(0.975) * stdev(largest) / len(largest) ** 0.5
    return {
        **SuccessRate.of(successes).to_dict(),
        "largest_coverage": round(mean, 4),
        "largest_coverage_interval": [round(mean - half, 4), round(mean + half, 4)],
    }


def kept(path: Path, make: Any) -> dict[str, Any]:
    """What `make` gives, once."""
    if not path.exists():
        path.write_text(json.dumps(make(), indent=2), encoding="utf-8")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def smolact(words: Sequence[str]) -> tuple[str, float]:
    """Run a command on one thread; what it says, and the seconds of CPU that it took."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "smolact", *words], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"smolact {words[0]} ended with {process.returncode}.")
    return said, usage.ru_utime + usage.ru_stime


def shown(words: Sequence[str], folder: Path) -> str:
    """A command as it can be told: without this machine's folders."""
    return "smolact " + " ".join(words).replace(str(folder), "FOLDER")


def draw(figures: dict[str, Any], path: Path) -> None:
    """Loss and largest coverage over the steps of training."""
    figure, (losses, coverage) = pyplot.subplots(1, 2, figsize=(9.5, 3.4), dpi=110, layout="constrained")
    for name, found in figures["runs"].items():
        loss, curve = (
            found["curves"]["loss"],
            found["curves"].get("eval/max_reward", {"steps": [], "values": []}),
        )
        losses.plot(loss["steps"], loss["values"], label=name)
        (line,) = coverage.plot(curve["steps"], curve["values"], marker="o", markersize=3)
        low, high = found["largest_coverage_interval"]
        last = figures["budget"]["steps"]
        coverage.errorbar(
            last * 1.03, found["largest_coverage"], [[found["largest_coverage"] - low], [high - found["largest_coverage"]]],
            color=line.get_color(), marker="s", markersize=4, capsize=3,
        )  # fmt: skip
    floor = figures["standing still"]["largest_coverage"]
    coverage.axhline(floor, color="0.5", linestyle=":", label="standing still")
    coverage.legend(loc="upper left", fontsize=8)
    coverage.set(xlabel="step", title="Largest coverage, as a share of what succeeds", ylim=(0, 1))
    losses.set(xlabel="step", yscale="log", title="Loss (each policy's own)")
    losses.legend(loc="upper right", fontsize=8)
    for axes in (losses, coverage):
        axes.grid(alpha=0.3)
    figure.savefig(path)


if __name__ == "__main__":
    main()

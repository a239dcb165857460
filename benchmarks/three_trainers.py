"""One training in three trainers, step by step: `smolact train`, Hugging Face's Trainer, `lerobot-train` with our plugin.

    python benchmarks/three_trainers.py --folder=FOLDER [--steps=200] [--output=RESULTS.json]
    python benchmarks/three_trainers.py --output=RESULTS.json --plot=PICTURE.png     # draws what was written; needs matplotlib

With the interpreter of an environment that holds LeRobot 0.6.1 (see compare_lerobot.py) and the plugin
(`pip install --no-deps ./plugins/lerobot_policy_smolact`). Every run is a process of its own on one thread of a CPU. All begin from
the same checkpoint, a `tiny` SmolVLA after one step, and learn from the same demonstrations on the tabletop (one camera, video).

smolact and Hugging Face's Trainer are run as they come. LeRobot draws the order of frames, noise and times from generators of its
own; so it runs twice: as it comes, and *aligned*, where this file (not the plugin) puts two things in their place:

- `EpisodeAwareSampler` of `lerobot.scripts.lerobot_train`, by the frames of smolact's stream;
- noise and times, which `forward` of a policy takes as arguments, by those of the same places of the stream.

Everything else is LeRobot's: its dataset and video decoding, collation, processors, normalization, AdamW, schedule, clipping, loop.
Aligned, it also trains its own SmolVLA, in which nothing is ours; with `--policy.load_vlm_weights=false`, without which it rounds
the VLM to bfloat16 while it loads the checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

SEED, BATCH = 1000, 8
OURS, HF, PLUGIN, OWN, AS_IT_COMES = (
    "smolact train",
    "Hugging Face's Trainer",
    "lerobot-train, smolvla_fast, aligned",
    "lerobot-train, its own smolvla, aligned",
    "lerobot-train, smolvla_fast, as it comes",
)
COMPARED = (HF, PLUGIN, OWN)
QUIET = ("--report=false", "--tensorboard.enable=false")
MODEL = "checkpoints/last/pretrained_model/model.safetensors"


def main() -> None:
    """Make what is missing, compare, and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, help="for the dataset, the first checkpoint and the runs")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--episodes", type=int, default=20, help="demonstrations")
    parser.add_argument("--output", type=Path, help="the figures, as JSON")
    parser.add_argument("--plot", type=Path, help="the curves, as PNG, from the figures in --output")
    parser.add_argument("--run", choices=RUNS, help="only this run; for the processes that this file starts")
    arguments = parser.parse_args()
    if arguments.run:
        losses = RUNS[arguments.run](arguments.folder, arguments.steps)
        record(arguments.folder, arguments.run).write_text(json.dumps(losses))
    elif arguments.plot:
        draw(json.loads(arguments.output.read_text(encoding="utf-8")), arguments.plot)
    else:
        figures = compare(arguments.folder.resolve(), arguments.steps, arguments.episodes)
        text = json.dumps(figures, indent=2, ensure_ascii=False) + "\n"
        if arguments.output:
            arguments.output.write_text(text, encoding="utf-8")
        sys.stdout.write(json.dumps(figures["compared with smolact train"], indent=2) + "\n")


def compare(folder: Path, steps: int, episodes: int) -> dict[str, Any]:
    """The losses of all runs, and how far the others' and the weights that they end with are from smolact's."""
    prepare(folder, episodes)
    for name in RUNS:
        if not record(folder, name).exists():
            words = [f"--folder={folder}", f"--steps={steps}", f"--run={name}"]
            with (folder / f"{label(name)}.log").open("w") as log:
                subprocess.run(
                    [sys.executable, __file__, *words], check=True, stdout=log, stderr=log, env=environment()
                )
    losses = {name: json.loads(record(folder, name).read_text()) for name in RUNS}
    first = load_file(str(folder / "base" / MODEL))
    weights = {name: load_file(str(model_of(folder, name, steps))) for name in (OURS, *COMPARED)}
    info = json.loads((folder / "dataset/meta/info.json").read_text(encoding="utf-8"))
    import lerobot
    import transformers

    return {
        "command": "python benchmarks/three_trainers.py --folder=FOLDER",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}; one thread",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "lerobot": lerobot.__version__,
            "transformers": transformers.__version__,
        },
        "dataset": f"{info['total_episodes']} episodes, {info['total_frames']} frames",
        "steps": steps,
        "batch_size": BATCH,
        "seed": SEED,
        "compared with smolact train": {
            name: {
                **distance(losses[OURS], losses[name]),
                **weights_distance(first, weights[OURS], weights[name]),
            }
            for name in COMPARED
        },
        "losses": losses,
    }


def distance(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Largest relative difference of the loss: of the first step, of the first ten, of all."""
    off = np.abs(np.array(theirs) - np.array(ours)) / np.array(ours)
    return {
        "loss, step 1": float(off[0]),
        "loss, steps 1 to 10": float(off[:10].max()),
        "loss, all steps": float(off.max()),
    }


def weights_distance(
    base: Mapping[str, Tensor], ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]
) -> dict[str, float]:
    """How far apart the weights are at the end, as a share of how far the training has moved them."""
    off = sum(float((theirs[name].double() - value.double()).square().sum()) for name, value in ours.items())
    way = sum(float((base[name].double() - value.double()).square().sum()) for name, value in ours.items())
    return {"weights at the end, over the way that they went": (off / way) ** 0.5}


def prepare(folder: Path, episodes: int) -> None:
    """The demonstrations, the VLM as a folder that LeRobot can open, and the checkpoint that all begin from, by both of its names."""
    from smolact.backbones.presets import ASSETS, find_vlm

    dataset, vlm, base = folder / "dataset", folder / "vlm", folder / "base"
    if not dataset.exists():
        smolact(
            "dataset", "make-demos", "--env.type=tabletop", f"--episodes={episodes}", f"--output={dataset}"
        )
    if not vlm.exists():
        find_vlm("tiny").save(vlm)
        shutil.copyfile(ASSETS / "tiny/model.safetensors", vlm / "model.safetensors")
    if not base.exists():
        smolact(
            "train", "--policy.type=smolvla", f"--policy.vlm_model_name={vlm}", "--policy.device=cpu",
            "--policy.chunk_size=16", "--policy.n_action_steps=8", "--policy.resize_imgs_with_padding=[64,64]",
            "--policy.optimizer_lr=1e-3", "--policy.scheduler_decay_lr=1e-5", f"--dataset.root={dataset}",
            f"--batch_size={BATCH}", "--steps=1", "--num_workers=0", *QUIET, f"--output_dir={base}",
        )  # fmt: skip
        converted = f"--output={folder / 'base_fast'}"
        smolact("convert", str(base), "--to=smolvla_fast", converted)


def run_ours(folder: Path, steps: int) -> list[float]:
    """`smolact train`, as it is typed."""
    run = folder / label(OURS)
    smolact(
        "train", f"--policy.path={folder / 'base'}", "--policy.device=cpu", f"--dataset.root={folder / 'dataset'}",
        f"--batch_size={BATCH}", f"--steps={steps}", f"--seed={SEED}", "--log_freq=1", "--num_workers=0",
        *QUIET, f"--output_dir={run}",
    )  # fmt: skip
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


def run_hf(folder: Path, steps: int) -> list[float]:
    """`create_smolvla_trainer`, as docs/use/elsewhere.md shows it; its log has four digits, so the losses are kept beside."""
    from transformers import TrainingArguments

    from smolact import SmolVLAConfig
    from smolact_transformers.data import dataset_for
    from smolact_transformers.trainer import create_smolvla_trainer

    base = folder / "base/checkpoints/last/pretrained_model"
    trainer = create_smolvla_trainer(
        model_name_or_path=base,
        training_args=TrainingArguments(
            output_dir=str(folder / label(HF)),
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            remove_unused_columns=False,
            max_grad_norm=10.0,
            seed=SEED,
            save_steps=steps,
            report_to="none",
            use_cpu=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=dataset_for(SmolVLAConfig.from_pretrained(base), folder / "dataset"),
        policy_recipe=True,
    )
    losses: list[float] = []
    plain = trainer.compute_loss

    def compute_loss(*words: Any, **more: Any) -> Any:
        found = plain(*words, **more)
        losses.append(float((found[0] if isinstance(found, tuple) else found).detach()))
        return found

    trainer.compute_loss = compute_loss  # type: ignore[method-assign]
    trainer.train()
    return losses


def run_lerobot(name: str, base: str, is_aligned: bool, *more: str) -> Callable[[Path, int], list[float]]:
    """`lerobot-train`, as it is typed; its log has three digits, so the losses are kept beside."""

    def run(folder: Path, steps: int) -> list[float]:
        from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
        from lerobot.scripts import lerobot_train
        from lerobot_policy_smolact.modeling_smolvla_fast import SmolVLAFastPolicy

        policy = SmolVLAFastPolicy if "fast" in base else SmolVLAPolicy
        losses = watch(policy, draws_of(folder) if is_aligned else None)
        if is_aligned:
            frames = stream(folder, steps)
            lerobot_train.EpisodeAwareSampler = lambda *_, **__: frames
        sys.argv = [
            "lerobot-train", f"--policy.path={folder / base}", "--policy.device=cpu", "--policy.push_to_hub=false",
            f"--dataset.root={folder / 'dataset'}", "--dataset.repo_id=some/dataset", "--dataset.video_backend=pyav",
            f"--batch_size={BATCH}", f"--steps={steps}", f"--seed={SEED}", "--num_workers=0", "--wandb.enable=false",
            "--env_eval_freq=0", f"--save_freq={steps}", f"--output_dir={folder / label(name)}", *more,
        ]  # fmt: skip
        lerobot_train.main()
        return losses

    return run


def watch(policy: Any, draws: Any) -> list[float]:
    """The losses that a policy's class will compute; with noise and times of smolact's stream, if `draws` says how."""
    from smolact.training.stream import seeded

    losses: list[float] = []
    plain = policy.forward

    def forward(self: Any, batch: Any, *words: Any, **more: Any) -> Any:
        if draws is not None:
            first = len(losses) * BATCH
            drawn = [draws(seeded(SEED, "draws", place)) for place in range(first, first + BATCH)]
            more |= {name: torch.stack([one[name] for one in drawn]) for name in drawn[0]}
        loss, logged = plain(self, batch, *words, **more)
        losses.append(float(loss.detach()))
        return loss, logged

    policy.forward = forward
    return losses


def draws_of(folder: Path) -> Any:
    """What a sample of SmolVLA needs drawn, and how."""
    from smolact import SmolVLAPolicy

    return SmolVLAPolicy.from_pretrained(folder / "base/checkpoints/last/pretrained_model").training_draws


def stream(folder: Path, steps: int) -> list[int]:
    """The frames of a run, in smolact's order."""
    from smolact.training.stream import ShuffledEpochs

    info = json.loads((folder / "dataset/meta/info.json").read_text(encoding="utf-8"))
    order = ShuffledEpochs(range(info["total_frames"]), SEED)
    return [order.frame(place) for place in range(steps * BATCH)]


FAST_BASE, OWN_BASE = "base_fast", "base/checkpoints/last/pretrained_model"
RUNS: dict[str, Callable[[Path, int], list[float]]] = {
    OURS: run_ours,
    HF: run_hf,
    PLUGIN: run_lerobot(PLUGIN, FAST_BASE, True),
    OWN: run_lerobot(OWN, OWN_BASE, True, "--policy.load_vlm_weights=false"),
    AS_IT_COMES: run_lerobot(AS_IT_COMES, FAST_BASE, False),
}


def label(name: str) -> str:
    """A name for files."""
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def record(folder: Path, name: str) -> Path:
    """Where a run's losses are kept."""
    return folder / f"{label(name)}.json"


def model_of(folder: Path, name: str, steps: int) -> Path:
    """The weights that a run ended with."""
    run = folder / label(name)
    return run / f"checkpoint-{steps}/model.safetensors" if name == HF else run / MODEL


def environment() -> dict[str, str]:
    """One thread, no Hub."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def smolact(*words: str) -> None:
    """Run a command, as it is typed."""
    subprocess.run([sys.executable, "-m", "smolact", *words], check=True, env=environment())


def draw(figures: dict[str, Any], path: Path) -> None:
    """The losses over each other, and how far each is from `smolact train`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    losses = {name: np.array(values) for name, values in figures["losses"].items()}
    steps = np.arange(1, figures["steps"] + 1)
    colors = {OURS: "#222222", HF: "#d08c20", PLUGIN: "#2a6f97", OWN: "#5b8c5a"}
    styles = {OURS: "-", HF: (0, (6, 6)), PLUGIN: (0, (2, 4)), OWN: (0, (1, 6))}
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10.5, 3.6), dpi=110, layout="constrained")
    left.plot(steps, losses[AS_IT_COMES], color="0.75", linewidth=1, label=AS_IT_COMES)
    for name, color in colors.items():
        width = 1.2 if name == OURS else 2.2
        left.plot(steps, losses[name], color=color, linestyle=styles[name], linewidth=width, label=name)
        if name != OURS:
            off = np.abs(losses[name] - losses[OURS]) / losses[OURS]
            is_off = off > 0
            same = f"{name}: equal in {np.sum(~is_off)}"
            right.plot(steps[is_off], off[is_off], ".", color=color, markersize=4, label=same)
    left.set(xlabel="step", title="Loss", yscale="log")
    right.set(xlabel="step", title="Relative difference from smolact train", yscale="log", ylim=(1e-8, 1e-3))
    right.axhline(2**-23, color="0.6", linestyle=":", linewidth=1, label="float32's last digit")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7.5, frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main()

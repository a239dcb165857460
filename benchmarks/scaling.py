"""How cost grows: a replan and a training step with cameras, chunk, steps and instruction; the loader with the dataset's frames.

    python benchmarks/scaling.py [--repeats=5] [--frames 10000 100000 1000000] [--output=RESULTS.json] [--plot=PICTURE.png]

SmolVLA on the preset `small` (23 million parameters with its expert; images of 128×128), random weights, one setting changed at a time
from two cameras, chunk 50, 10 steps, 24 words. A replan is the engine's, of one observation; a training step is the expert's alone,
four samples, forward and backward. On one thread, in seconds of the processor, which other work on the machine lengthens less than
those on the clock. The settings take turns; medians count. Beside the figures stands what one would expect: the operations that
`smolact info` counts.

The loader reads single samples in random order, with a chunk of 50 actions and a picture of 8×8 (PNG in the tables): time to open,
seconds a sample and memory, each size in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from measuring import processor_name

from smolact.datasets.writer import DatasetWriter
from smolact.policies.smolvla.configuration_smolvla import SmolVLAConfig
from smolact.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from smolact.policies.summary import summarize
from smolact.types import FeatureType, PolicyFeature

USUAL = {"cameras": 2, "chunk": 50, "steps": 10, "words": 24}
AXES = {
    "cameras": (1, 2, 3, 4),
    "chunk": (10, 25, 50, 75, 100),
    "steps": (1, 2, 5, 10, 15, 20),
    "words": (8, 16, 24, 32, 48),
}
SIDE, SAMPLES = 128, 4


def policy_of(cameras: int, chunk: int, steps: int, words: int) -> SmolVLAPolicy:
    """Random weights, the same for all settings but for the number of parameters that the chunk does not change."""
    torch.manual_seed(0)
    pictures = {
        f"observation.images.{n}": PolicyFeature(FeatureType.VISUAL, (3, SIDE, SIDE)) for n in range(cameras)
    }
    config = SmolVLAConfig(
        input_features={**pictures, "observation.state": PolicyFeature(FeatureType.STATE, (6,))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (6,))},
        vlm_model_name="small",
        num_vlm_layers=8,
        chunk_size=chunk,
        n_action_steps=chunk,
        num_steps=steps,
        tokenizer_max_length=words,
        pad_language_to="max_length",  # the count of operations is then of these words
        resize_imgs_with_padding=(SIDE, SIDE),
    )
    return SmolVLAPolicy(config)


def batch_of(samples: int, cameras: int, chunk: int, words: int) -> dict[str, torch.Tensor]:
    """Random inputs."""
    draw = torch.Generator().manual_seed(0)
    return {
        **{f"observation.images.{n}": torch.rand(samples, 3, SIDE, SIDE, generator=draw) for n in range(cameras)},
        "observation.state": torch.randn(samples, 6, generator=draw),
        "observation.language.tokens": torch.randint(5, 900, (samples, words), generator=draw),
        "observation.language.attention_mask": torch.ones(samples, words, dtype=torch.bool),
        "action": torch.randn(samples, chunk, 6, generator=draw),
    }  # fmt: skip


def works(setting: dict[str, int]) -> tuple[dict[str, Callable[[], object]], dict[str, float]]:
    """What is timed at a setting, and the operations that each is of."""
    cameras, chunk, words = setting["cameras"], setting["chunk"], setting["words"]
    policy = policy_of(**setting)
    one, four = batch_of(1, cameras, chunk, words), batch_of(SAMPLES, cameras, chunk, words)
    noise = torch.randn(1, chunk, 32)
    engine = policy.build_engine(dtype=torch.float32)
    policy.train()

    def step() -> None:
        loss, _ = policy.forward(four)
        loss.backward()
        policy.zero_grad(set_to_none=True)

    counted = summarize(policy, SAMPLES).workload
    expert = counted.forward - counted.vision - counted.prefix  # alone goes backward, at twice its cost
    expected = {"replan": counted.replan, "training step": (counted.forward + 2 * expert) * SAMPLES}
    return {"replan": lambda: engine.predict_action_chunk(one, noise), "training step": step}, expected


def compute(repeats: int) -> dict[str, Any]:
    """Of each axis its points: seconds of the processor, and counted operations."""
    rows: dict[str, Any] = {}
    for axis, points in AXES.items():
        made = {point: works({**USUAL, axis: point}) for point in points}
        for kind in ("replan",) if axis == "steps" else ("replan", "training step"):
            taken: dict[int, list[float]] = {point: [] for point in points}
            for _ in range(repeats + 1):  # the first is to warm up
                for point, (timed, _) in made.items():
                    began = time.process_time()
                    timed[kind]()
                    taken[point].append(time.process_time() - began)
            rows.setdefault(kind, {})[axis] = [
                {
                    axis: point,
                    "seconds": round(statistics.median(values[1:]), 4),
                    "from": round(min(values[1:]), 4),
                    "to": round(max(values[1:]), 4),
                    "counted GFLOP": round(made[point][1][kind] / 1e9, 3),
                }
                for point, values in taken.items()
            ]
            sys.stderr.write(f"{kind}, {axis}: {[row['seconds'] for row in rows[kind][axis]]}\n")
    return rows


# The loader.

EPISODE, WRITTEN = 500, 10_000

READ = """
import json, resource, sys, time
import numpy as np
from smolact.datasets.reader import LeRobotDataset
import torch
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
torch.set_num_threads(1)
before, began = resident(), time.process_time()
dataset = LeRobotDataset(sys.argv[1], delta_timestamps={"action": [n / 30 for n in range(50)]}, return_uint8=True)
dataset[0]
opened, after = time.process_time() - began, resident()
order = np.random.default_rng(0).integers(0, len(dataset), 2000).tolist()
for index in order[:200]:
    dataset[index]
began = time.process_time()
for index in order[200:]:
    assert int(dataset[index]["index"]) == index
seconds = (time.process_time() - began) / 1800
print(json.dumps({"frames": len(dataset), "seconds to open": round(opened, 3), "seconds a sample": round(seconds, 6),
  "MB to open": round((after - before) / 1e6, 1), "MB after 2000 samples": round((resident() - before) / 1e6, 1)}))
"""


def written(root: Path, frames: int) -> Path:
    """A dataset of so many frames."""
    vector = {"dtype": "float32", "shape": (6,), "names": [f"joint_{n}" for n in range(6)]}
    features = {
        "observation.images.top": {"dtype": "image", "shape": (8, 8, 3)},
        **dict.fromkeys(("observation.state", "action"), vector),
    }
    draw = np.random.default_rng(0)
    with DatasetWriter.create(root, fps=30, features=features) as writer:
        for number in range(frames):
            state = np.full(6, number, np.float32)
            picture = draw.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            frame = {"observation.images.top": picture, "observation.state": state, "action": state}
            writer.add_frame(frame, task="move")
            if (number + 1) % EPISODE == 0:
                writer.save_episode()
    return root


def grown(root: Path, times: int, output: Path) -> Path:
    """A dataset that holds all of a written one so many times, with numbers of its own; ten times in a file."""
    data = pa.concat_tables(pq.read_table(path) for path in sorted((root / "data").rglob("*.parquet")))
    meta = pa.concat_tables(
        pq.read_table(path) for path in sorted((root / "meta/episodes").rglob("*.parquet"))
    )
    info = json.loads((root / "meta/info.json").read_text())
    frames, episodes = info["total_frames"], info["total_episodes"]
    shutil.copytree(root / "meta", output / "meta", ignore=shutil.ignore_patterns("episodes"))
    metas = []
    for first in range(0, times, 10):
        copies = range(first, min(first + 10, times))
        tables = [
            moved(data, {"index": number * frames, "episode_index": number * episodes}) for number in copies
        ]
        put(pa.concat_tables(tables), output / f"data/chunk-000/file-{first // 10:03d}.parquet")
        for number in copies:
            shift = {
                "episode_index": number * episodes,
                **dict.fromkeys(("dataset_from_index", "dataset_to_index"), number * frames),
            }
            file = pa.array([first // 10] * len(meta), pa.int64())
            place = meta.schema.get_field_index("data/file_index")
            metas.append(moved(meta, shift).set_column(place, "data/file_index", file))
    file = pa.array([0] * (times * len(meta)), pa.int64())
    table = pa.concat_tables(metas)
    table = table.set_column(
        table.schema.get_field_index("meta/episodes/file_index"), "meta/episodes/file_index", file
    )
    put(table, output / "meta/episodes/chunk-000/file-000.parquet")
    info |= {
        "total_frames": frames * times,
        "total_episodes": episodes * times,
        "splits": {"train": f"0:{episodes * times}"},
    }
    (output / "meta/info.json").write_text(json.dumps(info))
    return output


def moved(table: pa.Table, by: dict[str, int]) -> pa.Table:
    """A table with something added to some of its columns."""
    for name, amount in by.items():
        values = pc.add(table[name], pa.scalar(amount, table[name].type))
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), values)
    return table


def put(table: pa.Table, path: Path) -> None:
    """Write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=1000)


def loading(sizes: list[int], scratch: Path) -> list[dict[str, float]]:
    """A row for each size, in a process of its own."""
    rows = []
    small = written(scratch / "written", WRITTEN)
    for size in sizes:
        root = grown(small, size // WRITTEN, scratch / str(size))
        script = [sys.executable, "-c", READ, str(root)]
        out = subprocess.run(script, check=True, capture_output=True, text=True).stdout
        rows.append(json.loads(out))
        sys.stderr.write(out)
    return rows


def main() -> None:
    """Measure, draw, and print a JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--frames", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {
        "command": "python benchmarks/scaling.py",
        "machine": f"{os.cpu_count()} cores, {processor_name()}; one thread; seconds of the processor",
        "torch": torch.__version__,
        "usual": USUAL,
        **compute(arguments.repeats),
    }
    with tempfile.TemporaryDirectory() as scratch:
        found["loader"] = loading(arguments.frames, Path(scratch)) if arguments.frames else []
    text = json.dumps(found, indent=2, ensure_ascii=False) + "\n"
    if arguments.output:
        arguments.output.write_text(text)
    if arguments.plot:
        draw(found, arguments.plot)
    sys.stdout.write(text)


def draw(found: dict[str, Any], path: Path) -> None:
    """A panel for each axis, and one for the loader: measured with its spread, and what the count predicts from the usual setting."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 5, figsize=(15, 3.1), layout="constrained")
    colors = {"replan": "#2a6f97", "training step": "#c1553b"}
    for panel, axis in zip(panels, AXES, strict=False):
        for kind, color in colors.items():
            rows = found[kind].get(axis, [])
            if not rows:
                continue
            x = [row[axis] for row in rows]
            y = [1e3 * row["seconds"] for row in rows]
            around = [
                [1e3 * (row["seconds"] - row["from"]) for row in rows],
                [1e3 * (row["to"] - row["seconds"]) for row in rows],
            ]
            usual = next(row for row in rows if row[axis] == USUAL[axis])
            scale = 1e3 * usual["seconds"] / usual["counted GFLOP"]
            panel.errorbar(
                x, y, around, color=color, marker="o", markersize=4, linewidth=1.5, capsize=2, label=kind
            )
            panel.plot(
                x, [scale * row["counted GFLOP"] for row in rows], color=color, linewidth=1, linestyle=":"
            )
        panel.set_title({"chunk": "actions in a chunk", "words": "tokens of language", "steps": "denoising steps"}.get(axis, axis), fontsize=10)  # fmt: skip
        panel.set_ylim(bottom=0)
        panel.set_xticks(AXES[axis])
    panels[0].set_ylabel("milliseconds of one core", fontsize=9)
    panels[0].legend(fontsize=8, frameon=False)
    panels[2].plot([], [], color="gray", linestyle=":", label="counted operations")
    panels[2].legend(fontsize=8, frameon=False)
    rows = found["loader"]
    if rows:
        frames = [row["frames"] for row in rows]
        panel = panels[4]
        panel.plot(
            frames,
            [1e3 * row["seconds a sample"] for row in rows],
            color="#2a6f97",
            marker="o",
            label="ms a sample",
        )
        panel.plot(
            frames, [row["seconds to open"] for row in rows], color="#c1553b", marker="o", label="s to open"
        )
        panel.plot(
            frames,
            [row["MB after 2000 samples"] / 1e3 for row in rows],
            color="#5b8c5a",
            marker="o",
            label="GB of memory",
        )
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_title("frames in a dataset", fontsize=10)
        panel.legend(fontsize=8, frameon=False)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()

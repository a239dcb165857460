"""How long until there is something to use, and how much memory that takes: `--help`, the import, a 450M checkpoint ready to predict.

    python benchmarks/start.py [--repeats=5] [--lerobot] [--output=RESULTS.json]

Every figure is of a fresh process; medians count. A checkpoint of SmolVLA-450M's shapes with random weights in bfloat16 is saved once
(0.9 GB). "Ready" begins when torch is imported and ends when the engine can be asked; smolact's own imports count. Memory is the peak
of what is resident, above what torch took by itself; mapped pages of the file count. `--lerobot` loads the same folder with LeRobot
0.6.1, which must be installed for this Python.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

READY = """
import json, resource, sys, time
import torch
torch.set_num_threads(int(sys.argv[3]))

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before, began, busy = peak(), time.perf_counter(), time.process_time()
if sys.argv[2] == "lerobot":
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
    from lerobot.policies.factory import make_pre_post_processors
    policy = SmolVLAPolicy.from_pretrained(sys.argv[1])
    make_pre_post_processors(policy.config, pretrained_path=sys.argv[1])
else:
    import smolact
    dtype = getattr(torch, sys.argv[2]) if sys.argv[2] != "policy" else None
    engine = {"dtype": dtype} if dtype else False
    loaded = smolact.load_policy(sys.argv[1], device="cpu", engine=engine)
ready, worked = time.perf_counter() - began, time.process_time() - busy
print(json.dumps({"seconds": ready, "processor": worked, "peak": peak() - before, "torch": before}))
"""


def main() -> None:
    """Measure, and print a JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--lerobot", action="store_true")
    parser.add_argument("--checkpoint", type=Path, help="a folder that this script made, to make it once")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.checkpoint or Path(scratch) / "pretrained_model"
        if not folder.exists():
            subprocess.run([sys.executable, "-c", MAKE, str(folder)], check=True)
        rows = measure(folder, arguments)
    from measuring import processor_name

    found = {
        "command": "python benchmarks/start.py" + (" --lerobot" if arguments.lerobot else ""),
        "machine": f"{os.cpu_count()} cores, {processor_name()}",
        "threads": arguments.threads,
        "load before": round(load, 1),
        "rows": rows,
    }
    text = json.dumps(found, indent=2, ensure_ascii=False) + "\n"
    if arguments.output:
        arguments.output.write_text(text)
    sys.stdout.write(text)


MAKE = """
import sys
from pathlib import Path
import numpy as np, torch
sys.path.insert(0, "benchmarks")
from compare_lerobot import settings
from smolact.backbones.presets import find_vlm
from smolact.policies.factory import make_policy, make_pre_post_processors
from smolact.policies.smolvla.configuration_smolvla import SmolVLAConfig
vlm = Path(sys.argv[1]).parent / "vlm"
find_vlm("smolvlm2-500m").save(vlm)  # for LeRobot, which knows no presets
data = settings(vlm, 480, 640, load_vlm_weights=False)
policy = make_policy(SmolVLAConfig.from_dict(data), pretrained_vlm=False).bfloat16()
numbers = {name: np.ones(6) for name in ("mean", "std", "min", "max")}
processors = make_pre_post_processors(policy, {"observation.state": numbers, "action": numbers})
for part in (policy, *processors):
    part.save_pretrained(sys.argv[1])
"""


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """A row for each thing to start."""
    weights = (folder / "model.safetensors").stat().st_size
    sides = {
        "engine, bfloat16": "bfloat16",
        "engine, float32": "float32",
        "policy, float32": "policy",
        **({"LeRobot": "lerobot"} if arguments.lerobot else {}),
    }
    commands = {
        "smolact --help": ["-m", "smolact", "--help"],
        "import smolact": ["-c", "import smolact"],
        "python alone": ["-c", "pass"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    ready: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for _ in range(arguments.repeats):
        for name, command in commands.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - began)
        for name, side in sides.items():
            script = [sys.executable, "-c", READY, str(folder), side, str(arguments.threads)]
            out = subprocess.run(script, check=True, capture_output=True, text=True).stdout
            ready[name].append(json.loads(out.splitlines()[-1]))
            sys.stderr.write(f"{name}: {ready[name][-1]}\n")
    rows: dict[str, Any] = {name: {"seconds": spread(taken)} for name, taken in seconds.items()}
    for name, runs in ready.items():
        peak = statistics.median(run["peak"] for run in runs)
        rows[f"450M checkpoint, {name}"] = {
            "seconds": spread([run["seconds"] for run in runs]),
            "seconds of the processor": spread([run["processor"] for run in runs]),
            "peak above torch, MB": round(peak / 1e6),
            "times the file": round(peak / weights, 2),
        }
    return rows


def spread(values: list[float]) -> dict[str, float]:
    """Median, least, most."""
    return {
        "median": round(statistics.median(values), 3),
        "from": round(min(values), 3),
        "to": round(max(values), 3),
    }


if __name__ == "__main__":
    main()

"""Load a checkpoint, show it a moment of a dataset, and get a chunk of actions in the robot's own units.

    python examples/load_and_predict.py [CHECKPOINT DATASET]

Such as `outputs/demo/train outputs/demo/dataset`. Without arguments it takes those of `train_in_a_script.py`, which
is run first if it was not yet.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

import smolact
from smolact.types import ACTION

CHECKPOINT, DATASET = "outputs/examples/trained", "outputs/examples/table"


def predict(checkpoint: str, root: str, index: int = 0) -> torch.Tensor:
    """The actions (chunk, A) that the policy would take at a moment of a dataset."""
    # Processors come with the policy: what was normalized with in training is what is undone here.
    policy, preprocess, postprocess = smolact.load_policy(checkpoint)
    moment = smolact.LeRobotDataset(root)[index]
    print(f"It sees {[key for key in moment if 'image' in key]} and is told {moment['task']!r}.")

    batch = preprocess(moment)  # a batch of one: tokens, normalized state, everything on the policy's device
    policy.eval()
    torch.manual_seed(0)  # the chunk is made of noise: another seed, another chunk
    chunk = policy.predict_action_chunk(batch)  # (1, chunk, A), normalized

    actions = postprocess(chunk)[0]
    print(f"{len(actions)} actions; the first: {[round(value, 3) for value in actions[0].tolist()]}")
    print(f"in the demonstration it was:   {[round(value, 3) for value in moment[ACTION].tolist()]}")
    return actions


if __name__ == "__main__":
    if len(sys.argv) not in (1, 3):
        sys.exit(__doc__)
    if len(sys.argv) == 1 and not Path(CHECKPOINT).exists():
        subprocess.run([sys.executable, Path(__file__).with_name("train_in_a_script.py")], check=True)
    predict(*(sys.argv[1:] or (CHECKPOINT, DATASET)))

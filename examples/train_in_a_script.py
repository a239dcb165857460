"""Training, in a loop of one's own: what `smolact train` does, without all that makes it safe to leave alone.

    python examples/train_in_a_script.py [DATASET OUTPUT]

Without a dataset it makes a small one: a scripted expert on the tabletop. What the loop leaves out: schedule, checks, checkpoints along the way, resuming, several processes, draws that follow from a
sample's place in the run. To have those and write Python, call `smolact.training.train.train`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from smolact import LeRobotDataset, SmolVLAConfig, SmolVLAPolicy
from smolact.datasets.collate import collate
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.policies.factory import make_pre_post_processors

DATASET, OUTPUT = "outputs/examples/table", "outputs/examples/trained"
CHUNK = 8


def train(root: str, output: str, steps: int = 100, batch_size: int = 8) -> list[float]:
    """Train a tiny SmolVLA from random weights; the losses."""
    torch.manual_seed(0)
    meta = LeRobotDatasetMetadata(root)
    dataset = LeRobotDataset(root, delta_timestamps={"action": [step / meta.fps for step in range(CHUNK)]})
    inputs, outputs = meta.policy_features()
    config = SmolVLAConfig(
        vlm_model_name="tiny",
        input_features=inputs,
        output_features=outputs,
        chunk_size=CHUNK,
        n_action_steps=CHUNK,
        resize_imgs_with_padding=(64, 64),
        train_expert_only=False,
        freeze_vision_encoder=False,
        optimizer_lr=1e-3,
        device="cpu",
    )
    policy = SmolVLAPolicy(config).train()
    preprocess, postprocess = make_pre_post_processors(policy, meta.stats)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size, shuffle=True, collate_fn=collate, drop_last=True
    )
    optimizer = torch.optim.AdamW(policy.parameters(), lr=config.optimizer_lr, betas=config.optimizer_betas)

    losses: list[float] = []
    while len(losses) < steps:
        for batch in loader:
            loss, _ = policy(preprocess(batch))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), config.optimizer_grad_clip_norm)
            optimizer.step()
            losses.append(float(loss.detach()))
            if len(losses) >= steps:
                break
    policy.save_pretrained(output)
    preprocess.save_pretrained(output)
    postprocess.save_pretrained(output)
    print(f"{steps} steps: loss {losses[0]:.2f} → {losses[-1]:.2f}, saved to {Path(output).resolve()}")
    return losses


if __name__ == "__main__":
    if len(sys.argv) not in (1, 3):
        sys.exit(__doc__)
    if len(sys.argv) == 1 and not Path(DATASET).exists():
        demos = ["make-demos", "--env.type=tabletop", "--episodes=20", f"--output={DATASET}"]
        subprocess.run([sys.executable, "-m", "smolact", "dataset", *demos], check=True)
    train(*(sys.argv[1:] or (DATASET, OUTPUT)))

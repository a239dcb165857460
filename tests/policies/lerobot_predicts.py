"""Run by an interpreter that has LeRobot: checkpoints through its own loader, and the chunks that they predict."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.policies.factory import make_policy, make_pre_post_processors
from safetensors.torch import load_file, save_file

dataset, inputs, output, *checkpoints = sys.argv[1:]
torch.set_num_threads(1)
tensors = load_file(inputs)
noise = tensors.pop("noise")
meta = LeRobotDatasetMetadata("none/none", root=dataset)
chunks = {}
for checkpoint in checkpoints:
    config = PreTrainedConfig.from_pretrained(checkpoint)
    config.pretrained_path = Path(checkpoint)
    policy = make_policy(config, ds_meta=meta).eval()
    preprocess, postprocess = make_pre_post_processors(config, checkpoint)
    batch = preprocess({**tensors, "task": ["push the block"] * len(noise)})
    with torch.no_grad():
        chunks[checkpoint] = postprocess(policy.predict_action_chunk(batch, noise=noise)).contiguous()
save_file(chunks, output)

"""Run by an interpreter that has LeRobot: a checkpoint's processors there, on the same numbers."""

from __future__ import annotations

import sys

import torch
from lerobot.processor import PolicyProcessorPipeline
from safetensors.torch import load_file, save_file

folder, inputs, output = sys.argv[1:]
tensors = load_file(inputs)
before, after = (
    PolicyProcessorPipeline.from_pretrained(folder, config_filename=f"{name}.json")
    for name in ("policy_preprocessor", "policy_postprocessor")
)
step = next(step for step in before.steps if type(step).__name__ == "NormalizerProcessorStep")
back = next(step for step in after.steps if type(step).__name__ == "UnnormalizerProcessorStep")
there = step._normalize_action(tensors["action"], inverse=False)
save_file({"there": there, "back": back._normalize_action(there, inverse=True)}, output)
assert torch.isfinite(there).all()

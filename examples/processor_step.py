"""A processor step of one's own: a gripper that is open or closed, whatever its motor says.

    python examples/processor_step.py [OUTPUT]

A step takes a batch and returns a new one; it never changes the batch that it was given. Registered under a name, it is
saved with a checkpoint and found again, as long as this module is imported first.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from smolact.processors.pipeline import PREPROCESSOR, ProcessorPipeline
from smolact.processors.step import ProcessorStep, register_step
from smolact.processors.steps import AddBatchDimensionProcessorStep
from smolact.types import STATE


@register_step("mine_binary_gripper")
@dataclass
class BinaryGripper(ProcessorStep):
    """Sets one value of the state to 0 or 1.

    Args:
        index: which one; the last as it comes.
        threshold: above it the gripper counts as open.
    """

    index: int = -1
    threshold: float = 50.0

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The batch with the gripper open or closed."""
        if STATE not in data:
            return dict(data)
        state = data[STATE].clone()
        state[..., self.index] = (state[..., self.index] > self.threshold).to(state.dtype)
        return {**data, STATE: state}

    def get_config(self) -> dict[str, Any]:
        """What the file keeps: the arguments, as JSON."""
        return {"index": self.index, "threshold": self.threshold}


def main(output: str) -> torch.Tensor:
    """Run a state through it, save the pipeline, load it, and run the state through again."""
    pipeline = ProcessorPipeline(
        [AddBatchDimensionProcessorStep(), BinaryGripper(threshold=30)], PREPROCESSOR
    )
    before = {STATE: torch.tensor([12.0, -8.0, 41.5])}
    after = pipeline(before)[STATE]

    pipeline.save_pretrained(output)
    again = ProcessorPipeline.from_pretrained(output, f"{PREPROCESSOR}.json")
    assert torch.equal(again(before)[STATE], after)
    print(f"{again}\n{before[STATE].tolist()} → {after[0].tolist()}")
    return after


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "outputs/examples/step")

"""The size and cost of a policy: parameters, FLOPs, memory. Nothing is allocated or loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from smolact.backbones.weights import shapes_only
from smolact.memory import scaled, size
from smolact.policies.base import PreTrainedPolicy
from smolact.policies.configuration import PolicyConfig
from smolact.policies.factory import get_policy_class
from smolact.policies.tree import Branch, rows_of, tree_of
from smolact.policies.workload import PartSize, Workload

FLOAT32, BFLOAT16 = 4, 2
"""Bytes per value."""


@dataclass(frozen=True)
class ModelSummary:
    """A policy's sizes.

    Attributes:
        workload: the cost of one sample; None if the policy does not count it.
        batch_size: samples of a training step on one device.
    """

    tree: Branch
    workload: Workload | None
    batch_size: int

    @property
    def parts(self) -> Mapping[str, PartSize]:
        """Part name to size, without the total."""
        return {branch.name: branch.size for branch in self.tree.branches}

    @property
    def total(self) -> PartSize:
        """The size of all parts together."""
        return self.tree.size

    @property
    def part_flops(self) -> Mapping[str, int]:
        """Part name to FLOPs of one sample's forward pass; the vision tower's include the connector's."""
        if self.workload is None:
            return {}
        rest = self.workload.forward - self.workload.vision
        if "action expert" in self.parts:
            return {
                "vision tower": self.workload.vision,
                "text model": self.workload.prefix,
                "action expert": rest - self.workload.prefix,
            }
        return {"vision tower": self.workload.vision, "text model": rest}

    @property
    def weight_bytes(self) -> int:
        """Bytes of float32 weights; bfloat16 ones take half."""
        return self.total.parameters * FLOAT32

    @property
    def gradient_bytes(self) -> int:
        """Bytes of float32 gradients; frozen parameters have none."""
        return self.total.trained * FLOAT32

    @property
    def optimizer_bytes(self) -> int:
        """Bytes of AdamW's two moments in float32, for the trainable parameters."""
        return 2 * self.total.trained * FLOAT32

    @property
    def activation_bytes(self) -> int:
        """An estimate of the float32 activations that autograd saves for a batch; 0 if the policy does not count them.

        Counted layer by layer (inputs of norms, of activations, of attention and of trainable products), with fused
        attention; temporary memory of frozen layers and the allocator's overhead come on top.
        """
        return 0 if self.workload is None else self.batch_size * self.workload.kept_values * FLOAT32

    @property
    def model_bytes(self) -> int:
        """Bytes of weights, gradients and AdamW's moments: the memory of training that does not depend on the batch."""
        return self.weight_bytes + self.gradient_bytes + self.optimizer_bytes


def summarize(policy: PreTrainedPolicy, batch_size: int = 1) -> ModelSummary:
    """Return the sizes of a policy, on any device, with its present frozen parameters."""
    tree = tree_of(policy)
    parts = {branch.name: branch.size for branch in tree.branches}
    return ModelSummary(tree, policy.workload(parts), batch_size)


def empty_policy(config: PolicyConfig) -> PreTrainedPolicy:
    """Build a policy on the meta device: all shapes, no memory.

    Raises:
        NotFoundError, HubError: the VLM can't be found or fetched.
        ConfigError: the sizes do not fit together.
    """
    config = config.uncompiled()  # there is nothing to compile
    policy_class = get_policy_class(config.type)
    with shapes_only():
        return policy_class(config, **policy_class.load_extra_files(None, config, {}))


def facts_of(summary: ModelSummary) -> dict[str, str]:
    """Return the lines for the start of a run: parameters, compute if the policy counts it, and memory."""
    total, work = summary.total, summary.workload
    lines = {"parameters": f"{total.parameters / 1e6:.2f} M, of which {total.trained / 1e6:.2f} M train"}
    activations = "activations not counted"
    if work is not None:
        lines["compute"] = (
            f"{flops(work.forward)} forward a sample, {flops(work.replan)} a replan ({work.assumed})"
        )
        activations = f"activations about {size(summary.activation_bytes)} in float32"
    lines["memory"] = (
        f"{size(summary.model_bytes + summary.activation_bytes)}: weights {size(summary.weight_bytes)}, gradients "
        f"{size(summary.gradient_bytes)}, AdamW {size(summary.optimizer_bytes)}, {activations}"
    )
    return lines


def tree_lines(summary: ModelSummary) -> list[str]:
    """Return the tree, one line per branch: parameters, trainable share, FLOPs of a sample's forward pass, float32 weights."""
    work = dict(summary.part_flops)
    if summary.workload is not None:
        work[summary.tree.name] = summary.workload.forward
    table = [("", "parameters", "train", "FLOPs", "float32")]
    for name, branch in rows_of(summary.tree):
        count = branch.size.parameters
        share = f"{branch.size.trained / count:.0%}" if branch.size.trained < count else "all"
        table.append(
            (
                name,
                f"{count:,}",
                share if branch.size.trained else "–",
                flops(work[branch.name]) if branch.name in work else "",
                size(count * FLOAT32),
            )
        )
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(map(str.rjust, row[1:], widths[1:]))]).rstrip() for row in table
    ]


def table_of(summary: ModelSummary) -> dict[str, str]:
    """Return all figures that do not belong to a branch, name to text, for `smolact info`."""
    weights = summary.weight_bytes
    memory = {
        "weights": f"{size(weights)} in float32, {size(weights // 2)} in bfloat16",
        "gradients": size(summary.gradient_bytes),
        "AdamW": size(summary.optimizer_bytes),
    }
    trains = {"trains": f"{summary.total.trained:,} of {summary.total.parameters:,} parameters"}
    work = summary.workload
    if work is None:
        return {**trains, **memory}
    repeats = "" if work.prefix_once else f" × {work.denoising_steps} (use_cache=false)"
    return {
        **trains,
        "FLOPs for": work.assumed,
        "vision": flops(work.vision),
        "prefix": flops(work.prefix),
        work.passes: flops(work.expert),
        "forward, one sample": flops(work.forward),
        "replan": f"{flops(work.replan)} (vision + prefix{repeats} + {work.passes.split(',')[0]} × {work.denoising_steps})",
        **memory,
        "activations": f"about {size(summary.activation_bytes)} in float32, for {summary.batch_size} "
        f"{'sample' if summary.batch_size == 1 else 'samples'}; what autograd keeps, fused attention",
    }


def flops(count: float) -> str:
    """Format a count of FLOPs with its unit."""
    return scaled(count, 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"))

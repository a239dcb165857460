"""SmolVLA's inference engine: the results of `policy.predict_action_chunk`, as fast as the machine allows.

    engine = policy.build_engine()
    chunk = engine.predict_action_chunk(batch)

    engine.observe(batch)          # images and instruction
    chunk = engine.act(batch)      # the state

`engine_inputs` prepares a batch, `engine_network` packs the weights, `execution_plan` runs the network, with
one plan for each shape of observation. The gain of each part: docs/performance.md.
"""

# B batch, C chunk, A action width.

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from smolact.errors import ConfigError, FeatureError
from smolact.policies.common.chunking import Engine
from smolact.policies.common.flow_matching import SOLVERS, sample_noise
from smolact.policies.common.guidance import Guidance
from smolact.policies.inference.packing import (
    Int8PackedLinear,
    WeightPacker,
    extra_bytes,
    weight_sources,
    weight_versions,
)
from smolact.policies.inference.precision import check_fp8, check_int8, check_kernels, quickest_dtype
from smolact.policies.smolvla.configuration_smolvla import SmolVLAConfig
from smolact.policies.smolvla.engine_inputs import example_batch, prepare_inputs
from smolact.policies.smolvla.engine_network import Kernels, pack_network
from smolact.policies.smolvla.execution_plan import ExecutionPlan, Shape
from smolact.types import LANGUAGE_MASK, LANGUAGE_TOKENS

logger = logging.getLogger(__name__)

_MAX_PLANS = 16
"""Size of the plan cache; the least recently used plan is evicted."""
_TEXT_BUCKET = 8
"""On a GPU, instructions are padded to a multiple of this length, so that few graphs serve all of them."""


class SmolVLAEngine(Engine):
    """Predicts as its policy does. Changed weights are detected and packed again before the next prediction.

    Detected changes: a training step, loaded weights, added or removed adapters, another device or precision.
    After a write through `parameter.data`, which is not detected, call `refresh`.

    Args:
        policy: a `SmolVLAPolicy`, with or without adapters; it is not changed unless it is released.
        dtype: `torch.float32` or `torch.bfloat16`; by default the faster one on this machine.
        num_steps: denoising steps; the policy's by default.
        solver: `euler`, or `midpoint` or `heun`, which evaluate the network twice a step.
        int8: on a CPU, vision tower, VLM and expert in 8 bits (each product about a hundredth off).
        fp8: the expert's weights in float8, which a GPU of compute capability 8.9 or more reads in half of
            bfloat16's time, with custom kernels; chunks of trained policies change by 0.2%. On a CPU: the
            same numbers, slower, to measure the error.
        triton: on a GPU, custom kernels for the expert: two fifths of the launches. They were compared with
            the plain code in Triton's interpreter and compiled for GPUs, but have not run on one yet, so they
            are off by default.
        compile: `torch.compile` the parts: a minute for each new shape, and fused kernels.
        release: free the policy's own weights, so that none is held twice. The policy can't be used
            afterwards.
        graphs: record replans as CUDA graphs; by default on CUDA.
        capture: record a shape when it first occurs. Otherwise such a shape runs slowly, with a warning,
            unless `warm_up` has recorded it.

    Raises:
        ConfigError: a setting is invalid, or not supported on this device.
        MissingDependencyError: triton is required and not installed.
    """

    config: SmolVLAConfig

    def __init__(
        self,
        policy: Any,
        *,
        dtype: torch.dtype | None = None,
        num_steps: int | None = None,
        solver: str = "euler",
        int8: bool = False,
        fp8: bool = False,
        triton: bool = False,
        compile: bool = False,
        release: bool = False,
        graphs: bool | None = None,
        capture: bool = False,
    ) -> None:
        self._policy, self.config = policy, policy.config
        device = next(policy.parameters()).device
        if int8 and fp8:
            raise ConfigError("int8=True and fp8=True round the same weights. Leave one of them out.")
        if dtype not in (None, torch.float32, torch.bfloat16):
            raise ConfigError(f"dtype={dtype}: expected torch.float32 or torch.bfloat16.")
        if graphs and device.type != "cuda":
            raise ConfigError(
                f"graphs=True needs a CUDA device, and the policy is on {device}. Leave it out."
            )
        self._requested_dtype = dtype
        self._int8, self._fp8, self._triton = int8, fp8, triton
        self._release, self._compile = release, compile
        self.takes_leftover = not int8
        self._graphs, self._capture = graphs, capture
        self._plans: OrderedDict[Shape, ExecutionPlan] = OrderedDict()
        self._warned: set[Shape] = set()
        self._observed: ExecutionPlan | None = None
        self.use_steps(policy.config.num_steps if num_steps is None else num_steps, solver)
        self.refresh()
        self.reset()

    @property
    def noise_shape(self) -> tuple[int, int]:
        """The shape of one sample's `noise`: (chunk, max_action_dim)."""
        return self.config.chunk_size, self.config.max_action_dim

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights and activations; the solver's sums are always float32."""
        return self._network.dtype

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self._network.device

    @property
    def memory(self) -> int:
        """Bytes of the packed weights that are not the policy's own: of all weights once those are released."""
        return extra_bytes(self._network, self._policy)

    def use_steps(self, num_steps: int, solver: str = "euler") -> None:
        """Use this number of denoising steps and this solver from the next prediction on.

        Raises:
            ConfigError: `num_steps` is below 1, or the solver is unknown.
        """
        if num_steps < 1:
            raise ConfigError(f"num_steps={num_steps}: expected at least 1.")
        if solver not in SOLVERS:
            raise ConfigError(f"solver='{solver}': expected one of {', '.join(SOLVERS)}.")
        self.num_steps, self.solver = num_steps, solver
        self._clear_plans()

    @torch.inference_mode(False)
    @torch.no_grad()
    def refresh(self) -> None:
        """Pack the policy's weights again.

        Raises:
            ConfigError: they have been released, or a setting is not supported on their present device.
        """
        device = next(self._policy.parameters()).device
        if device.type == "meta":
            raise ConfigError(
                "The policy has no weights: an engine with release=True has taken them. Load it again."
            )
        if self._int8:
            check_int8(device, self._requested_dtype)
        kernels = self._kernels(device)
        packer = WeightPacker(
            torch.float32 if self._int8 else self._requested_dtype or quickest_dtype(device),
            int8=Int8PackedLinear if self._int8 else None,
            fp8=self._fp8,
            releases=self._release,
        )
        self._use_graphs = device.type == "cuda" if self._graphs is None else self._graphs
        self._adapters = self._policy.adapters
        self._network = pack_network(self._policy, packer, kernels)
        self._sources = weight_sources(self._policy)
        self._packed_versions = weight_versions(self._sources)
        self._clear_plans()

    def _kernels(self, device: torch.device) -> Kernels | None:
        """Return the kernels of our own if the settings need them; raise if they do not work on the device."""
        has_kernels = self._triton or (self._fp8 and device.type == "cuda")
        if has_kernels and self._compile:
            raise ConfigError(
                "compile=True and kernels of our own (triton=True, or fp8=True on a GPU) fuse the same operations. "
                "Leave one of them out."
            )
        if self._fp8:
            check_fp8(device)
        if self._triton:
            check_kernels(device)
        if not has_kernels:
            return None
        from smolact.policies.inference.kernels import with_kernels  # needs triton

        return with_kernels

    @torch.inference_mode(False)  # buffers outlive a caller's inference mode
    @torch.no_grad()
    def predict_action_chunk(
        self, batch: Mapping[str, Any], noise: Tensor | None = None, guidance: Guidance | None = None
    ) -> Tensor:
        """Predict the next actions (B, chunk, A), normalized, from `noise` (B, chunk, max_action_dim), drawn by default.

        With `guidance` they continue the leftover of the last chunk (normalized actions).

        Raises:
            FeatureError: an input is missing or has the wrong shape.
            ConfigError: `guidance` was given and int8 is on, which has no gradient.
        """
        self._refresh_if_changed()
        if guidance is not None and not self.takes_leftover:
            raise ConfigError("int8=True has no gradient, which guidance needs. Leave one of them out.")
        state = self._policy.prepare_state(batch)
        plan = self._load_inputs(batch)
        return self._finish(plan, "replan", state, noise, guidance)

    @torch.inference_mode(False)
    @torch.no_grad()
    def observe(self, batch: Mapping[str, Any]) -> None:
        """Load images and instruction, and run everything that does not need the state; then call `act`.

        Raises:
            FeatureError: an input is missing or has the wrong shape.
        """
        self._refresh_if_changed()
        plan = self._load_inputs(batch)
        self._run(plan, "observe")
        self._observed = plan

    @torch.inference_mode(False)
    @torch.no_grad()
    def act(self, batch: Mapping[str, Any], noise: Tensor | None = None) -> Tensor:
        """Predict the next actions (B, chunk, A) from the `observation.state` of `batch` and the last observation.

        Raises:
            FeatureError: the state is missing or has the wrong shape, or nothing was observed (with these
                weights).
        """
        self._refresh_if_changed()
        if self._observed is None:
            raise FeatureError(
                "Nothing has been observed: call engine.observe(batch) first, and again after other predictions."
            )
        return self._finish(self._observed, "act", self._policy.prepare_state(batch), noise)

    def warm_up(self, batch: Mapping[str, Any] | None = None) -> None:
        """Prepare buffers, compiled kernels and CUDA graphs (for all text lengths) for batches like this one.

        Args:
            batch: a preprocessed batch; by default one sample of the configured sizes.
        """
        batch = example_batch(self.config, self.device) if batch is None else batch
        tokens = self._policy.prepare_language(batch)[0]
        longest = max(self.config.tokenizer_max_length, 1)
        lengths = (
            range(_TEXT_BUCKET, longest + _TEXT_BUCKET, _TEXT_BUCKET)
            if self._use_graphs
            else [tokens.shape[1]]
        )
        capture, self._capture = self._capture, True
        try:
            for length in lengths:
                text = tokens.new_zeros(len(tokens), length)
                language = {LANGUAGE_TOKENS: text, LANGUAGE_MASK: torch.ones_like(text, dtype=torch.bool)}
                self.predict_action_chunk({**batch, **language}, torch.zeros(len(tokens), *self.noise_shape))
        finally:
            self._capture = capture

    def _refresh_if_changed(self) -> None:
        if self._release:
            return
        if self._adapters is not self._policy.adapters or self._packed_versions != weight_versions(
            self._sources
        ):
            logger.info("The policy's weights have changed: packing them anew.")
            self.refresh()

    def _clear_plans(self) -> None:
        self._plans.clear()
        self._warned.clear()
        self._observed = None

    def _load_inputs(self, batch: Mapping[str, Any]) -> ExecutionPlan:
        """Copy images and instruction into the buffers of the plan for their shape."""
        inputs = prepare_inputs(self._policy, batch, _TEXT_BUCKET if self._use_graphs else 1)
        plan = self._plan(inputs.shape)
        inputs.load(plan)
        self._observed = None
        return plan

    def _plan(self, shape: Shape) -> ExecutionPlan:
        if shape not in self._plans:
            steps = self.num_steps, self.solver
            self._plans[shape] = ExecutionPlan(
                self._network,
                self.config,
                shape,
                steps=steps,
                compiled=self._compile,
                graphs=self._use_graphs,
            )
            if len(self._plans) > _MAX_PLANS:
                self._plans.popitem(last=False)
        self._plans.move_to_end(shape)
        return self._plans[shape]

    def _finish(
        self,
        plan: ExecutionPlan,
        stage: str,
        state: Tensor,
        noise: Tensor | None,
        guidance: Guidance | None = None,
    ) -> Tensor:
        expected = (plan.shape.batch, *self.noise_shape)
        if noise is None:
            noise = sample_noise(expected, self.device)
        if tuple(noise.shape) != expected or len(state) != plan.shape.batch:
            raise FeatureError(
                f"Expected noise of shape {expected} and a state of as many rows, found {tuple(noise.shape)} and "
                f"{tuple(state.shape)}."
            )
        plan.noise.copy_(noise)
        plan.state.copy_(state)
        if guidance is None:
            self._run(plan, stage)
        else:
            self._run(plan, "read")
            plan.guide(self._policy.network_guidance(guidance, state))
        actions: Tensor = self._policy.finish_actions(plan.actions.clone(), state)
        return actions

    def _run(self, plan: ExecutionPlan, stage: str) -> None:
        if self._use_graphs and not plan.captured:
            if self._capture:
                plan.capture()
            elif plan.shape not in self._warned:
                self._warned.add(plan.shape)
                logger.warning(
                    "No CUDA graph was recorded for %s: predicting the slow way. Call engine.warm_up with such a batch, or "
                    "build the engine with capture=True.",
                    plan.shape,
                )
        plan.run(stage)

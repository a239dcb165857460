"""SmolAndFAST's inference engine: the policy's interface to fast generation (`generation.py`)."""

# B batch, A action values.

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from smolact.errors import ConfigError
from smolact.policies.common.chunking import Engine
from smolact.policies.inference.packing import weight_sources, weight_versions
from smolact.policies.inference.precision import check_int8, check_kernels, quickest_dtype
from smolact.policies.smolandfast.configuration_smolandfast import SMOLANDFASTConfig
from smolact.policies.smolandfast.generation import ActionWriter


class SmolAndFASTEngine(Engine):
    """Predicts with a policy's weights; `SMOLANDFASTPolicy.build_engine` makes it. Changed weights are packed again.

    In float32 it writes the policy's own tokens.

    Args:
        policy: a `SMOLANDFASTPolicy`.
        dtype: of weights, keys and values. None is bfloat16 where the machine multiplies it faster, else
            float32.
        int8: on a CPU, the text model's layers in 8 bits (each product about a hundredth off), the rest in
            float32.
        triton: on a GPU, custom kernels: less than half of the launches. They were compared with the plain
            code in Triton's interpreter, but have not run on a GPU yet, so they are off by default.
        temperature: 0 takes the most likely token each time; otherwise tokens are sampled, at 1 from the
            model's distribution.
        generator: the source of randomness, on the weights' device; PyTorch's own when None.

    Raises:
        ConfigError: a temperature below 0 or not finite; `int8` on another device, or with another `dtype`;
            `triton` without CUDA.
        MissingDependencyError: triton is required and not installed.
    """

    config: SMOLANDFASTConfig

    def __init__(
        self,
        policy: Any,
        *,
        dtype: torch.dtype | None = None,
        int8: bool = False,
        triton: bool = False,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        if not 0 <= temperature < float("inf"):
            raise ConfigError(
                f"temperature={temperature}: expected 0 (the most likely token) or more. 1 draws as the model says."
            )
        self._policy, self.config, self._vlm = policy, policy.config, policy.model.vlm
        if int8:
            check_int8(self._vlm.lm_head.weight.device, dtype)
        if triton:
            check_kernels(self._vlm.lm_head.weight.device)
        self._writer_factory = partial(
            ActionWriter,
            self._vlm,
            policy.model.vocabulary,
            policy.actions.grammar(*policy.chunk_shape),
            int8=int8,
            triton=triton,
            temperature=temperature,
            generator=generator,
        )
        self._dtype = torch.float32 if int8 else dtype
        self.reset()
        self.writer = self._make_writer()

    def _make_writer(self) -> ActionWriter:
        self._packed_versions = weight_versions(weight_sources(self._vlm))
        return self._writer_factory(dtype=self._dtype or quickest_dtype(self._vlm.lm_head.weight.device))

    @property
    def memory(self) -> int:
        """Bytes of the weights that are not the policy's own."""
        return self.writer.held

    def predict_action_chunk(self, batch: Mapping[str, Any], noise: Tensor | None = None) -> Tensor:
        """Predict the next actions (B, chunk, A), normalized. `noise` is not used.

        Raises:
            FeatureError: an input is missing.
            ActionTokensError: an answer was not complete after `max_decoding_steps` tokens.
        """
        if self._packed_versions != weight_versions(weight_sources(self._vlm)):
            self.writer = self._make_writer()
        prompt, valid, pixels = self._policy.prepare_inputs(batch)
        written = self.writer.write(prompt, valid, pixels, self.config.max_decoding_steps)
        chunks: Tensor = self._policy.decode(written)
        return chunks

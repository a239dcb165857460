"""SmolAndFAST's processors in LeRobot: names, device, normalization. The policy writes prompts itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lerobot.processor import (
    ProcessorStep,
    ProcessorStepRegistry,
    make_default_policy_processor_steps,
    make_policy_processor_pipelines,
)

from lerobot_policy_smolact.configuration_smolandfast import SMOLANDFASTConfig


@ProcessorStepRegistry.register("smolandfast_prompt_processor")
@dataclass
class PromptProcessorStep(ProcessorStep):
    """A placeholder with the settings of smolact's prompt step, which changes nothing.

    The step needs the VLM's tokenizer and the policy's action tokens. LeRobot builds pipelines without the policy, so the policy
    runs the step.
    """

    n_state_bins: int = 256
    max_input_seq_len: int = 1536
    cameras: Sequence[str] = ()

    def __call__(self, transition: Any) -> Any:
        """Return the transition unchanged."""
        return transition

    def get_config(self) -> dict[str, Any]:
        """The settings of smolact's step."""
        return {
            "n_state_bins": self.n_state_bins,
            "max_input_seq_len": self.max_input_seq_len,
            "cameras": list(self.cameras),
        }

    def transform_features(self, features: Any) -> Any:
        """Return the features unchanged."""
        return features


def make_smolandfast_pre_post_processors(
    config: SMOLANDFASTConfig, dataset_stats: Mapping[str, Mapping[str, Any]] | None = None
) -> tuple[Any, Any]:
    """Return the preprocessor and the postprocessor, which smolact can load too."""
    steps = make_default_policy_processor_steps(config, dataset_stats)
    return make_policy_processor_pipelines(
        input_steps=[
            steps.rename_observations,
            steps.add_batch_dim,
            steps.to_device,
            steps.normalize,
            PromptProcessorStep(config.n_state_bins, config.max_input_seq_len, config.cameras),
        ],
        output_steps=[steps.unnormalize, steps.to_cpu],
    )

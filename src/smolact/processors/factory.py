"""Construction of the steps that most policies share, from a policy's features. A policy orders them and adds its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smolact.processors.normalize import NormalizerProcessorStep, UnnormalizerProcessorStep
from smolact.processors.pipeline import POSTPROCESSOR, PREPROCESSOR, ProcessorPipeline
from smolact.processors.statistics import rename_statistics
from smolact.processors.step import ProcessorStep
from smolact.processors.steps import (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    RenameObservationsProcessorStep,
)
from smolact.types import FeatureType, NormalizationMode, PolicyFeature


@dataclass(frozen=True)
class DefaultSteps:
    """The steps that most preprocessors and postprocessors share."""

    rename_observations: RenameObservationsProcessorStep
    add_batch_dimension: AddBatchDimensionProcessorStep
    to_device: DeviceProcessorStep
    normalize: NormalizerProcessorStep
    unnormalize: UnnormalizerProcessorStep
    to_cpu: DeviceProcessorStep


def make_default_steps(
    input_features: Mapping[str, PolicyFeature],
    output_features: Mapping[str, PolicyFeature],
    norm_map: Mapping[FeatureType, NormalizationMode],
    stats: Mapping[str, Mapping[str, Any]] | None = None,
    device: str = "cpu",
    rename_map: Mapping[str, str] | None = None,
) -> DefaultSteps:
    """Make the steps for a policy with these features.

    Args:
        input_features: the policy's inputs, under its own names.
        norm_map: feature type to normalization mode.
        stats: the dataset's statistics, under the dataset's names.
        device: the policy's device; actions return to the CPU.
        rename_map: the dataset's names to the policy's.

    Raises:
        StatisticsError, DeviceError, ConfigError: from the steps.
    """
    renamed = rename_statistics(stats, rename_map or {}) if stats else None
    return DefaultSteps(
        rename_observations=RenameObservationsProcessorStep(dict(rename_map or {})),
        add_batch_dimension=AddBatchDimensionProcessorStep(),
        to_device=DeviceProcessorStep(device),
        normalize=NormalizerProcessorStep({**input_features, **output_features}, dict(norm_map), renamed),
        unnormalize=UnnormalizerProcessorStep(dict(output_features), dict(norm_map), renamed),
        to_cpu=DeviceProcessorStep("cpu"),
    )


def make_pipelines(
    pre_steps: Sequence[ProcessorStep], post_steps: Sequence[ProcessorStep]
) -> tuple[ProcessorPipeline, ProcessorPipeline]:
    """Return the preprocessor and the postprocessor of a policy, with the names of LeRobot's files."""
    return ProcessorPipeline(pre_steps, PREPROCESSOR), ProcessorPipeline(post_steps, POSTPROCESSOR)

"""The steps that most policies share, made from a policy's features. A policy orders them and adds its own."""

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
    """What stands before and behind most policies."""

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
    """The steps for a policy with these features.

    Args:
        input_features: what the policy reads, under its own names.
        output_features: what it writes.
        norm_map: how each type of feature is normalized.
        stats: the dataset's statistics, under the dataset's names.
        device: where the policy runs; actions come back to the CPU.
        rename_map: the dataset's names to the policy's.

    Raises:
        StatisticsError, DeviceError, ConfigError: what the steps raise.
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
    before: Sequence[ProcessorStep], behind: Sequence[ProcessorStep]
) -> tuple[ProcessorPipeline, ProcessorPipeline]:
    """The preprocessor and the postprocessor of a policy, named as LeRobot's files are."""
    return ProcessorPipeline(before, PREPROCESSOR), ProcessorPipeline(behind, POSTPROCESSOR)

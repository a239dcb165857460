"""The schema of a checkpoint: inputs and outputs under the robot's names and in its units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from smolact.policies.configuration import PolicyConfig
from smolact.policies.embodiment import Embodiment
from smolact.policies.fit import absent_cameras, has_empty_cameras, placeholders, real_cameras
from smolact.processors.pipeline import rename_map_of
from smolact.types import ACTION, FeatureType, PolicyFeature, is_image_key
from smolact_client.schema import Names, Schema


def schema_of(config: PolicyConfig, preprocess: Any, postprocess: Any) -> Schema:
    """Return the schema of a policy with this configuration and these processors."""
    renamed = rename_map_of(preprocess)
    original = {new: old for old, new in renamed.items()}
    cameras = {original.get(key, key): _size(feature.shape) for key, feature in real_cameras(config).items()}
    vectors = {
        original.get(key, key): int(feature.shape[0])
        for key, feature in config.input_features.items()
        if not is_image_key(key)
    }
    action = int(config.action_feature.shape[0])
    chunk = config.chunk_size
    size_of = {**vectors, ACTION: action}
    embodiment = config.embodiment or Embodiment()

    def fitting(lists: Mapping[str, Names]) -> dict[str, Names]:
        named = {original.get(key, key): names for key, names in lists.items()}
        return {key: names for key, names in named.items() if len(names) == size_of.get(key)}

    return Schema(
        policy=config.type,
        cameras=cameras,
        vectors=vectors,
        action=action,
        chunk_size=chunk,
        n_action_steps=config.n_action_steps,
        names=fitting(embodiment.names),
        action_range=_range_of(postprocess, action),
        absent_cameras=absent_cameras(config),
        placeholders=placeholders(config) if has_empty_cameras(config) else None,
        units=fitting(embodiment.units),
        fps=embodiment.fps,
        rename_map=renamed,
    )


def _size(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (height, width) of a camera's feature, channels first or last."""
    return (shape[1], shape[2]) if shape[0] <= 4 < shape[2] else (shape[0], shape[1])


def _range_of(postprocess: Any, size: int) -> tuple[tuple[float, float], ...] | None:
    """Return the minimum and maximum of each action dimension in the training data, if the checkpoint has them."""
    for step in getattr(postprocess, "steps", ()):
        stats = getattr(step, "statistics", {}).get(ACTION, {})
        if {"min", "max"} <= stats.keys() and all(stats[name].shape == (size,) for name in ("min", "max")):
            return tuple(zip(stats["min"].tolist(), stats["max"].tolist(), strict=True))
    return None


@dataclass
class SchemaConfig(PolicyConfig):
    """The configuration of a policy of which only the schema is known."""

    type: ClassVar[str] = "schema"
    uses_cameras: ClassVar[bool] = False  # unless the schema has some
    empty_cameras: int = 0
    served: str = field(default="", metadata={"help": "the policy's type on its server"})


def config_of(schema: Schema) -> SchemaConfig:
    """Return a configuration with the features, sizes and names of a schema, for the checks of `policies.fit`."""
    inputs = {
        **{key: PolicyFeature(FeatureType.VISUAL, (3, *size)) for key, size in schema.cameras.items()},
        **{key: PolicyFeature(FeatureType.STATE, (size,)) for key, size in schema.vectors.items()},
    }
    config = SchemaConfig(
        input_features=inputs,
        output_features={ACTION: PolicyFeature(FeatureType.ACTION, (schema.action,))},
        chunk_size=schema.chunk_size,
        n_action_steps=schema.n_action_steps,
        empty_cameras=schema.absent_cameras,
        served=schema.policy,
    )
    return config.of_robot(Embodiment(fps=schema.fps, names=schema.names, units=schema.units))

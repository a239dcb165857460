"""A policy with what stands before and behind it, in this process: the same face as one on a server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from smolact.errors import FeatureError
from smolact.policies.common.chunking import Engine
from smolact.policies.common.guidance import Guidance, prefix_weights
from smolact.policies.configuration import PolicyConfig
from smolact.policies.embodiment import Embodiment
from smolact.policies.fit import absent_cameras, placeholders, real_cameras
from smolact.processors.observed import check_observed
from smolact.processors.pipeline import rename_map_of
from smolact.processors.statistics import require_statistics
from smolact.types import ACTION, TASK, Batch, EmptyInstruction, Predictor, is_image_key
from smolact_client.errors import ObservationError
from smolact_client.leftover import Leftover, check_leftover
from smolact_client.protocol import Array
from smolact_client.schema import Limits, Names, Schema, check_observation


@dataclass(frozen=True)
class Request:
    """What a policy is asked: an observation as `check_observation` lets it pass, an instruction (None: nothing, on purpose), a seed or none.

    `leftover`: what the answer is to go on from, as `check_leftover` lets it pass.
    """

    observation: Mapping[str, NDArray[Any]]
    task: str | None
    seed: int | None = None
    leftover: Leftover | None = None


class LocalPolicy:
    """A policy in this process: raw observations in, actions in the robot's units out.

    Args:
        policy, preprocess, postprocess: from `smolact.load_policy`; the policy, or its engine, is put into evaluation mode.
        any_names: whether a robot's joints may have other names than those of the policy's training.

    Raises:
        StatisticsError: statistics that it needs to answer in a robot's units are missing.
    """

    def __init__(
        self,
        policy: Predictor,
        preprocess: Callable[[Batch], Batch],
        postprocess: Callable[[Tensor], Tensor],
        *,
        any_names: bool = False,
    ) -> None:
        require_statistics(preprocess, postprocess)
        self._policy, self._preprocess, self._postprocess = policy, preprocess, postprocess
        if isinstance(policy, torch.nn.Module):
            policy.eval()
        takes_leftover = bool(getattr(policy, "takes_leftover", False))
        schema = schema_of(policy.config, preprocess, postprocess)
        self._schema = replace(schema, takes_leftover=takes_leftover, any_names=any_names)

    @property
    def schema(self) -> Schema:
        """What it looks at and answers."""
        return self._schema

    def predict_action_chunk(
        self,
        observation: Mapping[str, ArrayLike],
        task: str | None,
        *,
        timeout: float | None = None,
        seed: int | None = None,
        leftover: Leftover | None = None,
    ) -> NDArray[np.float32]:
        """The next actions (T, A) float32; `timeout` has no effect here.

        Raises:
            ObservationError: the policy can't look at this, or go on from that.
            FeatureError: it gave something else than finite actions.
        """
        if leftover is not None:
            check_leftover(self._schema, leftover)
        arrays: dict[str, Array] = {
            name: np.asarray(observation[name], None if is_image_key(name) else np.float32)
            for name in self._schema.inputs
            if name in observation
        }
        check_observation(self._schema, Limits(pixels=2**31), arrays, task)
        return self.predict([Request(arrays, task, seed, leftover)])[0]  # type: ignore[arg-type]  # none is a JPEG

    @torch.inference_mode()
    def predict(self, questions: Sequence[Request]) -> list[NDArray[np.float32]]:
        """A chunk for each question; their pictures have the same sizes, and leftovers are of one kind.

        Raises:
            ObservationError: a number of an observation is nowhere near what the policy was trained with.
            FeatureError: the policy gave something else than finite actions.
        """
        batch = self._batch(questions)
        wishes: dict[str, Any] = {**self._noise(batch, questions), **self._guidance(batch, questions)}
        chunks = self._policy.predict_action_chunk(batch, **wishes)
        actions: NDArray[np.float32] = self._postprocess(chunks).detach().float().cpu().numpy()
        expected = (len(questions), self._schema.chunk_size, self._schema.action)
        if actions.ndim != 3 or (actions.shape[0], actions.shape[2]) != (expected[0], expected[2]):
            raise FeatureError(f"The policy gave actions of the shape {actions.shape}: expected {expected}.")
        if not np.isfinite(actions).all():
            raise FeatureError(
                "The policy gave an action that is not finite. Its weights or its statistics are damaged."
            )
        return list(actions)

    def warm_up(self, max_batch: int = 1) -> None:
        """Answer once, so that what is made at first use (kernels, graphs, memory) is there.

        Args:
            max_batch: on a GPU, where an engine records a graph for each size, every size of batch up to this one.
        """
        black = {name: np.zeros((*size, 3), np.uint8) for name, size in self._schema.cameras.items()}
        zeros = {name: np.zeros(size, np.float32) for name, size in self._schema.vectors.items()}
        question = Request({**black, **zeros}, "warm up")
        on_gpu = str(getattr(self._policy.config, "device", None)).startswith("cuda")
        for size in range(1, max_batch + 1) if on_gpu else (1,):
            if isinstance(self._policy, Engine):
                self._policy.warm_up(self._batch([question] * size))
            self.predict([question] * size)

    def reset(self) -> None:
        """An episode begins."""
        self._policy.reset()

    def close(self) -> None:
        """There is nothing to let go of."""

    def _batch(self, questions: Sequence[Request]) -> Batch:
        arrays = {
            name: _stack(name, [one.observation[name] for one in questions])
            for name in questions[0].observation
        }
        tasks = [EmptyInstruction() if one.task is None else one.task for one in questions]
        batch = self._preprocess({**arrays, **self._leftovers(questions), TASK: tasks})
        try:
            check_observed(arrays, batch, self._preprocess, self._schema.names)
        except FeatureError as error:
            raise ObservationError(str(error)) from error
        return batch

    def _leftovers(self, questions: Sequence[Request]) -> Batch:
        """What is left of each question's chunk, filled up with zeros, to be normalized with the rest of a batch."""
        if all(one.leftover is None for one in questions):
            return {}
        actions = np.zeros((len(questions), self._schema.chunk_size, self._schema.action), np.float32)
        for row, one in zip(actions, questions, strict=True):
            if one.leftover is not None:
                row[: len(one.leftover.actions)] = one.leftover.actions
        return {ACTION: torch.from_numpy(actions)}

    def _guidance(self, batch: Batch, questions: Sequence[Request]) -> dict[str, Guidance]:
        found = [one.leftover for one in questions if one.leftover is not None]
        if not found:
            return {}
        schedule, max_weight, jacobian = found[0].kind
        actions: Tensor = batch[ACTION]
        rows = [
            (0, 0) if one.leftover is None else (one.leftover.delay, len(one.leftover.actions))
            for one in questions
        ]
        masks = [prefix_weights(*row, self._schema.chunk_size, schedule) for row in rows]
        # A number that never moved has no scale: what rounding leaves of it would be normalized to anything.
        units = self._postprocess(torch.stack([torch.zeros_like(actions[0]), torch.ones_like(actions[0])]))
        scale, rounding = (units[1] - units[0]).abs(), 1e-5 * (1 + units[0].abs())
        moves = scale > 10 * rounding
        weights = torch.stack(masks).to(actions.device)[..., None] * moves.to(actions.device)
        back = (self._postprocess(actions).cpu() - self._leftovers(questions)[ACTION]).abs()
        if (back > (1e-3 * scale + rounding).cpu())[weights.cpu() > 0].any():
            raise FeatureError(
                "This policy's preprocessor does not normalize actions as its postprocessor brings them back, so that they can't be "
                "gone on from. Its checkpoint's processor files are damaged, or of two trainings."
            )
        return {"guidance": Guidance(actions, weights, max_weight, jacobian)}

    def _noise(self, batch: Mapping[str, Any], questions: Sequence[Request]) -> dict[str, Tensor]:
        """Each question's own noise, if it has a seed and the policy tells the shape of what it draws."""
        shape = getattr(self._policy, "noise_shape", None)
        if shape is None or all(one.seed is None for one in questions):
            return {}
        generators = [
            None if one.seed is None else torch.Generator().manual_seed(one.seed) for one in questions
        ]
        device = next(value.device for value in batch.values() if isinstance(value, Tensor))
        return {"noise": torch.stack([torch.randn(shape, generator=one) for one in generators]).to(device)}


def schema_of(config: PolicyConfig, preprocess: Any, postprocess: Any) -> Schema:
    """What a policy looks at, under the names that its preprocessor takes, and answers."""
    renamed = rename_map_of(preprocess)
    back = {new: old for old, new in renamed.items()}
    cameras = {back.get(key, key): _size(feature.shape) for key, feature in real_cameras(config).items()}
    vectors = {
        back.get(key, key): int(feature.shape[0])
        for key, feature in config.input_features.items()
        if not is_image_key(key)
    }
    action = int(config.action_feature.shape[0])
    chunk = int(getattr(config, "chunk_size", 1))
    size_of = {**vectors, ACTION: action}
    known = getattr(config, "embodiment", None) or Embodiment()

    def fitting(lists: Mapping[str, Names]) -> dict[str, Names]:
        named = {back.get(key, key): names for key, names in lists.items()}
        return {key: names for key, names in named.items() if len(names) == size_of.get(key)}

    return Schema(
        policy=config.type,
        cameras=cameras,
        vectors=vectors,
        action=action,
        chunk_size=chunk,
        n_action_steps=int(getattr(config, "n_action_steps", chunk)),
        names=fitting(known.names),
        action_range=_range_of(postprocess, action),
        absent_cameras=absent_cameras(config),
        placeholders=placeholders(config) if hasattr(config, "empty_cameras") else None,
        units=fitting(known.units),
        fps=known.fps,
        rename_map=renamed,
    )


def _size(shape: tuple[int, ...]) -> tuple[int, int]:
    """(height, width) of a camera's feature, channels first or last."""
    return (shape[1], shape[2]) if shape[0] <= 4 < shape[2] else (shape[0], shape[1])


def _range_of(postprocess: Any, size: int) -> tuple[tuple[float, float], ...] | None:
    """The lowest and highest action of the training's data, where the checkpoint's statistics tell."""
    for step in getattr(postprocess, "steps", ()):
        known = getattr(step, "statistics", {}).get(ACTION, {})
        if {"min", "max"} <= known.keys() and all(known[name].shape == (size,) for name in ("min", "max")):
            return tuple(zip(known["min"].tolist(), known["max"].tolist(), strict=True))
    return None


def _stack(name: str, arrays: Sequence[NDArray[Any]]) -> Tensor:
    """Pictures (B, 3, H, W) uint8, which become floating point on the device; numbers (B, D) float32."""
    stacked = torch.from_numpy(np.stack(arrays))
    return stacked.permute(0, 3, 1, 2) if is_image_key(name) else stacked

"""A policy in this process: a checkpoint or its engine, with its processors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from smolact.errors import BadObservationError, FeatureError
from smolact.machine import one_thread
from smolact.policies.common.chunking import Engine
from smolact.policies.common.guidance import Guidance, prefix_weights
from smolact.processors.observed import check_observed
from smolact.processors.statistics import require_statistics
from smolact.runtime.observation import check_chunks, checked, to_batch
from smolact.runtime.policy import Chunk, Policy, Request
from smolact.runtime.schema import schema_of
from smolact.types import ACTION, TASK, Batch, EmptyInstruction, Predictor
from smolact_client.errors import ClientError, ObservationError
from smolact_client.leftover import Leftover


class LocalPolicy(Policy):
    """A policy in this process.

    Args:
        policy, preprocess, postprocess: from `smolact.load_policy`; the policy, or its engine. A module predicts in evaluation mode.
        any_names: whether a robot's joints may have other names than those of the policy's training.
        in_one_thread: predict in one thread, for a small policy: as fast alone, and faster on a busy machine.

    Attributes:
        config: the policy's configuration.

    Raises:
        StatisticsError: statistics for the conversion to and from the robot's units are missing.
    """

    def __init__(
        self,
        policy: Predictor,
        preprocess: Callable[[Batch], Batch],
        postprocess: Callable[[Tensor], Tensor],
        *,
        any_names: bool = False,
        in_one_thread: bool = False,
    ) -> None:
        require_statistics(preprocess, postprocess)
        self._policy, self._preprocess, self._postprocess = policy, preprocess, postprocess
        self.config = policy.config
        self._threads = one_thread if in_one_thread else contextlib.nullcontext
        takes_leftover = bool(getattr(policy, "takes_leftover", False))
        schema = schema_of(policy.config, preprocess, postprocess)
        self.schema = replace(schema, takes_leftover=takes_leftover, any_names=any_names)

    @torch.inference_mode()
    def predict(self, requests: Sequence[Request]) -> list[Chunk]:
        """See `Policy`."""
        requests = [checked(request, self.schema) for request in requests]
        kinds: dict[tuple[Any, ...], list[int]] = {}  # what one batch has in common
        for index, request in enumerate(requests):
            shapes = tuple((name, array.shape) for name, array in request.observation.items())
            leftover = None if request.leftover is None else request.leftover.kind
            kinds.setdefault((shapes, leftover), []).append(index)
        chunks: dict[int, Chunk] = {}
        with _evaluation_mode(self._policy), self._threads():
            for indices in kinds.values():
                answers = self._predict([requests[index] for index in indices])
                chunks.update(zip(indices, answers, strict=True))
        return [chunks[index] for index in range(len(requests))]

    def _predict(self, requests: Sequence[Request]) -> list[Chunk]:
        batch = self._batch(requests)
        drawn: dict[str, Any] = {**self._noise(batch, requests), **self._guidance(batch, requests)}
        chunks = self._postprocess(self._policy.predict_action_chunk(batch, **drawn))
        return check_chunks(chunks, self.schema, len(requests))

    def predict_action_chunk(
        self,
        observation: Mapping[str, ArrayLike],
        task: str | None,
        *,
        timeout: float | None = None,
        seed: int | None = None,
        leftover: Leftover | None = None,
    ) -> NDArray[np.float32]:
        """Return the next actions (T, A) float32, like a `smolact_client.ChunkPolicy`; `timeout` has no effect.

        Raises:
            ObservationError: the observation or the leftover does not fit.
            FeatureError: the policy's output is not finite or has a wrong shape.
        """
        arrays = {name: np.asarray(value) for name, value in observation.items()}
        try:
            return self.predict([Request(arrays, task, seed, leftover)])[0]
        except BadObservationError as error:
            raise (
                error.__cause__ if isinstance(error.__cause__, ClientError) else ObservationError(str(error))
            ) from error

    def warm_up(self, max_batch: int = 1) -> None:
        """Predict once; on a GPU, where an engine records a graph for each size, for every batch size up to `max_batch`."""
        request = self.blank_request()
        on_gpu = str(getattr(self._policy.config, "device", None)).startswith("cuda")
        for size in range(1, max_batch + 1) if on_gpu else (1,):
            if isinstance(self._policy, Engine):
                self._policy.warm_up(self._batch([request] * size))
            self.predict([request] * size)

    def reset(self) -> None:
        """Begin an episode."""
        self._policy.reset()

    def _batch(self, requests: Sequence[Request]) -> Batch:
        arrays = to_batch(requests)
        tasks = [EmptyInstruction() if request.task is None else request.task for request in requests]
        batch = self._preprocess({**arrays, **self._leftovers(requests), TASK: tasks})
        check_observed(arrays, batch, self._preprocess, self.schema.names)
        return batch

    def _leftovers(self, requests: Sequence[Request]) -> Batch:
        """Return the leftovers (B, T, A), padded with zeros, to be normalized with the batch; {} if no request has one."""
        if all(request.leftover is None for request in requests):
            return {}
        actions = np.zeros((len(requests), self.schema.chunk_size, self.schema.action), np.float32)
        for row, request in zip(actions, requests, strict=True):
            if request.leftover is not None:
                row[: len(request.leftover.actions)] = request.leftover.actions
        return {ACTION: torch.from_numpy(actions)}

    def _guidance(self, batch: Batch, requests: Sequence[Request]) -> dict[str, Guidance]:
        leftovers = [request.leftover for request in requests if request.leftover is not None]
        if not leftovers:
            return {}
        schedule, max_weight, jacobian = leftovers[0].kind
        actions: Tensor = batch[ACTION]
        rows = [
            (0, 0) if request.leftover is None else (request.leftover.delay, len(request.leftover.actions))
            for request in requests
        ]
        masks = [prefix_weights(*row, self.schema.chunk_size, schedule) for row in rows]
        # A dimension that is constant in the training data has no scale: its normalized value would be rounding noise.
        units = self._postprocess(torch.stack([torch.zeros_like(actions[0]), torch.ones_like(actions[0])]))
        scale, rounding = (units[1] - units[0]).abs(), 1e-5 * (1 + units[0].abs())
        moves = scale > 10 * rounding
        weights = torch.stack(masks).to(actions.device)[..., None] * moves.to(actions.device)
        error = (self._postprocess(actions).cpu() - self._leftovers(requests)[ACTION]).abs()
        if (error > (1e-3 * scale + rounding).cpu())[weights.cpu() > 0].any():
            raise FeatureError(
                "This policy's preprocessor does not normalize actions as its postprocessor brings them back, so that they can't be "
                "gone on from. Its checkpoint's processor files are damaged, or of two trainings."
            )
        return {"guidance": Guidance(actions, weights, max_weight, jacobian)}

    def _noise(self, batch: Mapping[str, Any], requests: Sequence[Request]) -> dict[str, Tensor]:
        """Return the noise of each request's seed, if the policy declares `noise_shape`."""
        shape = getattr(self._policy, "noise_shape", None)
        if shape is None or all(request.seed is None for request in requests):
            return {}
        generators = [
            None if request.seed is None else torch.Generator().manual_seed(request.seed)
            for request in requests
        ]
        device = next(value.device for value in batch.values() if isinstance(value, Tensor))
        return {"noise": torch.stack([torch.randn(shape, generator=rng) for rng in generators]).to(device)}


@contextlib.contextmanager
def _evaluation_mode(policy: object) -> Iterator[None]:
    """Put a module into evaluation mode, and restore the mode of each of its parts."""
    training = [part for part in policy.modules() if part.training] if isinstance(policy, nn.Module) else []
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True

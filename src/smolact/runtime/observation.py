"""Conversion of observations to a policy's batch, and the checks of requests and chunks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smolact.errors import BadObservationError, FeatureError, ServerError
from smolact.runtime.chunks import check_chunk
from smolact.runtime.policy import Chunk, Request
from smolact.types import Batch, is_image_key
from smolact_client.errors import ClientError, ObservationError, SchemaMismatchError
from smolact_client.leftover import check_leftover
from smolact_client.schema import Limits, Schema, check_observation

_NO_LIMIT = Limits(pixels=2**31)


def checked(request: Request, schema: Schema) -> Request:
    """Return the request with only the schema's inputs, vectors as float32.

    Raises:
        BadObservationError: the observation, the instruction or the leftover does not fit the schema.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for name in schema.inputs:
        if name in request.observation:
            try:
                arrays[name] = np.asarray(
                    request.observation[name], None if is_image_key(name) else np.float32
                )
            except (TypeError, ValueError) as error:
                raise BadObservationError(f"'{name}' holds no numbers: {error}.") from error
    with translate_errors():
        if request.leftover is not None:
            check_leftover(schema, request.leftover)
        check_observation(schema, _NO_LIMIT, arrays, request.task, request.seed)
    return Request(arrays, request.task, request.seed, request.leftover)


def to_batch(requests: Sequence[Request]) -> Batch:
    """Stack observations to a raw batch: pictures (B, 3, H, W) uint8, converted to floating point on the device; vectors (B, D)."""
    return {
        name: _stack(name, [request.observation[name] for request in requests])
        for name in requests[0].observation
    }


def check_chunks(actions: Tensor, schema: Schema, count: int) -> list[Chunk]:
    """Return the chunks of a policy's output (B, T, A).

    Raises:
        FeatureError: the output has another shape or is not finite.
    """
    values: NDArray[np.float32] = actions.detach().float().cpu().numpy()
    expected = (count, schema.chunk_size, schema.action)
    if values.ndim != 3 or (values.shape[0], values.shape[2]) != (expected[0], expected[2]):
        raise FeatureError(f"The policy gave actions of the shape {values.shape}: expected {expected}.")
    return [check_chunk(chunk, schema.action) for chunk in values]


@contextlib.contextmanager
def translate_errors() -> Iterator[None]:
    """Raise the client's errors as errors of this package."""
    try:
        yield
    except ObservationError as error:
        raise BadObservationError(str(error)) from error
    except SchemaMismatchError as error:
        raise FeatureError(str(error)) from error
    except ClientError as error:
        raise ServerError(str(error)) from error


def _stack(name: str, arrays: Sequence[NDArray[Any]]) -> Tensor:
    stacked = torch.from_numpy(np.stack(arrays))
    return stacked.permute(0, 3, 1, 2) if is_image_key(name) else stacked

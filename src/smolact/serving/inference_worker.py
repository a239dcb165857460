"""The inference worker: decodes the JPEGs of a batch of requests, runs the policy and assigns errors to requests."""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from smolact.errors import BadObservationError, FeatureError
from smolact.runtime.chunks import checked_chunks
from smolact.runtime.policy import Chunk, Policy, Request
from smolact.serving.sessions import PendingRequest
from smolact_client.errors import ClientError, ClosedError, ObservationError, PolicyFailedError, ProtocolError
from smolact_client.protocol import Jpeg

logger = logging.getLogger(__name__)

Image = NDArray[np.uint8]


class BatchResult(NamedTuple):
    """A chunk or an error for each request of a batch, and the duration in seconds."""

    results: list[Chunk | ClientError]
    seconds: float


class InferenceWorker:
    """Runs a policy, one batch at a time.

    Args:
        max_pixels: limit of a JPEG's pixels.
    """

    def __init__(self, policy: Policy, max_pixels: int) -> None:
        self._policy, self._max_pixels = policy, max_pixels
        self._decoders = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "jpeg")

    def close(self) -> None:
        """Shut the decoder threads down."""
        self._decoders.shutdown()

    def answer(self, batch: Sequence[PendingRequest]) -> BatchResult:
        """Return a chunk or an error for each request. Blocks."""
        began = time.monotonic()
        results: list[Chunk | ClientError] = [ClosedError()] * len(batch)
        requests: dict[int, Request] = {}
        images = self._decode_images(batch)
        for index, pending in enumerate(batch):
            arrays = {name: images.get((index, name), array) for name, array in pending.arrays.items()}
            invalid = next((array for array in arrays.values() if isinstance(array, ProtocolError)), None)
            if invalid is None:
                requests[index] = Request(arrays, pending.task, pending.seed, pending.leftover)  # type: ignore[arg-type]
            else:
                results[index] = ObservationError(str(invalid))
        for index, result in zip(requests, self._predict(list(requests.values())), strict=True):
            results[index] = result
        return BatchResult(results, time.monotonic() - began)

    def _decode_images(self, batch: Sequence[PendingRequest]) -> dict[tuple[int, str], Image | ProtocolError]:
        """Decode the batch's JPEGs in parallel; a value is an image or the error."""
        jpegs = {
            (index, name): array
            for index, pending in enumerate(batch)
            for name, array in pending.arrays.items()
            if isinstance(array, Jpeg)
        }
        if not jpegs:
            return {}

        def decode(jpeg: Jpeg) -> Image | ProtocolError:
            try:
                return jpeg.decode(self._max_pixels)
            except ProtocolError as error:
                return error

        return dict(zip(jpegs, self._decoders.map(decode, jpegs.values()), strict=True))

    def _predict(self, requests: Sequence[Request]) -> list[Chunk | ClientError]:
        if not requests:
            return []
        try:
            chunks = self._policy.predict(requests)
            return [*checked_chunks(chunks, len(requests), self._policy.schema.action)]
        except BadObservationError as error:
            return [ObservationError(str(error))] if len(requests) == 1 else self._predict_each(requests)
        except Exception as error:  # logged; the server continues
            if len(requests) > 1:  # one request may be the cause: try each alone
                return self._predict_each(requests)
            incident = secrets.token_hex(4)
            logger.exception("event=policy_failed incident=%s", incident)
            reason = f": {error}" if isinstance(error, FeatureError) else ""
            return [PolicyFailedError(f"The policy failed (incident {incident} in the server's log){reason}")]

    def _predict_each(self, requests: Sequence[Request]) -> list[Chunk | ClientError]:
        return [result for request in requests for result in self._predict([request])]

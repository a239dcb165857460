"""What happens to a batch of questions in the policy's thread: pictures are decoded, the policy is asked, faults are told apart."""

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
from smolact.runtime.policy import Chunk, Policy, Request
from smolact.serving.sessions import PendingRequest
from smolact_client.errors import ClientError, ClosedError, ObservationError, PolicyFailedError, ProtocolError
from smolact_client.protocol import Jpeg

logger = logging.getLogger(__name__)

Picture = NDArray[np.uint8]


class Answers(NamedTuple):
    """What came of a batch: a chunk or an error for each question, and the seconds that it took."""

    results: list[Chunk | ClientError]
    seconds: float


class InferenceWorker:
    """Asks a policy, one batch at a time.

    Args:
        policy: what is asked.
        max_pixels: of a JPEG.
    """

    def __init__(self, policy: Policy, max_pixels: int) -> None:
        self._policy, self._max_pixels = policy, max_pixels
        self._decoders = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "jpeg")

    def close(self) -> None:
        """Let go of the threads."""
        self._decoders.shutdown()

    def answer(self, batch: Sequence[PendingRequest]) -> Answers:
        """A chunk, or what went wrong, for each of them. Blocks."""
        began = time.monotonic()
        results: list[Chunk | ClientError] = [ClosedError()] * len(batch)
        questions: dict[int, Request] = {}
        pictures = self._pictures(batch)
        for index, asked in enumerate(batch):
            arrays = {name: pictures.get((index, name), array) for name, array in asked.arrays.items()}
            broken = next((array for array in arrays.values() if isinstance(array, ProtocolError)), None)
            if broken is None:
                questions[index] = Request(arrays, asked.task, asked.seed, asked.leftover)  # type: ignore[arg-type]
            else:
                results[index] = ObservationError(str(broken))
        for index, result in zip(questions, self._predict(list(questions.values())), strict=True):
            results[index] = result
        return Answers(results, time.monotonic() - began)

    def _pictures(self, batch: Sequence[PendingRequest]) -> dict[tuple[int, str], Picture | ProtocolError]:
        """What the batch's JPEGs show, each decoded beside the others, or what is wrong with them."""
        jpegs = {
            (index, name): array
            for index, asked in enumerate(batch)
            for name, array in asked.arrays.items()
            if isinstance(array, Jpeg)
        }
        if not jpegs:
            return {}

        def decoded(jpeg: Jpeg) -> Picture | ProtocolError:
            try:
                return jpeg.decode(self._max_pixels)
            except ProtocolError as error:
                return error

        return dict(zip(jpegs, self._decoders.map(decoded, jpegs.values()), strict=True))

    def _predict(self, questions: Sequence[Request]) -> list[Chunk | ClientError]:
        if not questions:
            return []
        try:
            chunks = self._policy.predict(questions)
            if len(chunks) != len(questions):
                raise FeatureError(f"The policy gave {len(chunks)} chunks for {len(questions)} questions.")
            return [*chunks]
        except BadObservationError as error:
            return [ObservationError(str(error))] if len(questions) == 1 else self._one_by_one(questions)
        except Exception as error:  # whatever a policy raises, the server goes on and the log has it
            if len(questions) > 1:  # one of them may be at fault, the others are not
                return self._one_by_one(questions)
            number = secrets.token_hex(4)
            logger.exception("event=policy_failed incident=%s", number)
            reason = f": {error}" if isinstance(error, FeatureError) else ""
            return [PolicyFailedError(f"The policy failed (incident {number} in the server's log){reason}")]

    def _one_by_one(self, questions: Sequence[Request]) -> list[Chunk | ClientError]:
        return [result for one in questions for result in self._predict([one])]

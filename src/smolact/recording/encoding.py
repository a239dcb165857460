"""Asynchronous encoding: a bounded frame queue, and a thread that encodes and writes the frames."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from smolact.datasets.writer import DatasetWriter

QUEUE_BYTES = 512 * 2**20
"""The queue's bound: nine seconds of two 480 × 640 cameras at 30 Hz."""


class _Frame(NamedTuple):
    values: dict[str, NDArray[Any]]
    task: str
    size: int


class _Command(NamedTuple):
    function: Callable[[], None]
    clears_error: bool
    done: Future[None]


class EncodingThread:
    """Passes frames to a writer, in order, in its own thread.

    Args:
        writer: used by this thread alone until `close`.
        max_bytes: the bound of the queue; frames beyond it are refused.
        wait: wait for free space instead of refusing frames, for recordings without real time.
    """

    def __init__(self, writer: DatasetWriter, max_bytes: int = QUEUE_BYTES, *, wait: bool = False) -> None:
        self._writer, self._max_bytes, self._wait = writer, max_bytes, wait
        self._items: queue.SimpleQueue[_Frame | _Command | None] = queue.SimpleQueue()
        self._space = threading.Condition()
        self._bytes = 0
        self._error: BaseException | None = None
        self._discarding = threading.Event()  # frames after the last save need no encoding
        self._saves_requested = self._saves_done = 0
        self._thread: threading.Thread | None = threading.Thread(target=self._work, name="encoding")
        self._thread.start()

    @property
    def waiting_bytes(self) -> int:
        """The bytes of the frames that are not written yet."""
        return self._bytes

    def add(self, frame: Mapping[str, NDArray[Any]], task: str) -> bool:
        """Copy a frame into the queue; returns False, without adding it, if the queue is full.

        Raises:
            SmolactError: an earlier frame of this episode could not be encoded or written.
        """
        if self._error is not None:
            raise self._error
        size = sum(value.nbytes for value in frame.values())
        with self._space:
            fits = self._fits(size)
            if not fits and self._wait:
                fits = self._space.wait_for(lambda: self._fits(size))
            if not fits:
                return False
            self._bytes += size
        # Drivers reuse their buffers.
        self._items.put(_Frame({name: np.array(value) for name, value in frame.items()}, task, size))
        return True

    def save(self) -> Future[None]:
        """Finish the episode after its frames; the future is done when it is on disk, or raises its error."""
        self._saves_requested += 1
        return self._put_command(self._writer.save_episode, clears_error=False)

    def discard(self) -> None:
        """Discard the frames since the last save, and their error if there was one."""
        self._discarding.set()
        self._put_command(self._writer.discard_episode, clears_error=True).result()

    def close(self) -> None:
        """Write the saved episodes, discard frames after the last save, and end the thread."""
        if self._thread is not None:
            self._discarding.set()
            self._put_command(self._writer.discard_episode, clears_error=True)
            self._items.put(None)
            self._thread.join()
            self._thread = None

    def _fits(self, size: int) -> bool:
        return self._bytes == 0 or self._bytes + size <= self._max_bytes

    def _put_command(self, function: Callable[[], None], clears_error: bool) -> Future[None]:
        done: Future[None] = Future()
        self._items.put(_Command(function, clears_error, done))
        return done

    def _work(self) -> None:
        while (item := self._items.get()) is not None:
            if isinstance(item, _Frame):
                try:
                    if self._error is None and (
                        self._saves_done < self._saves_requested or not self._discarding.is_set()
                    ):
                        self._writer.add_frame(item.values, item.task)
                except BaseException as error:  # raised in the recording thread by `add` or `save`
                    self._error = error
                with self._space:
                    self._bytes -= item.size
                    self._space.notify_all()
                continue
            if item.clears_error:
                self._error = None
                self._discarding.clear()
            else:
                self._saves_done += 1
            try:
                if self._error is not None:
                    raise self._error
                item.function()
            except BaseException as error:
                item.done.set_exception(error)
            else:
                item.done.set_result(None)

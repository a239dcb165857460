"""Encoding beside the control loop: a queue with a bound, and a thread that writes what is in it."""

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
"""Nine seconds of two 480 × 640 cameras at 30 Hz."""


class _Frame(NamedTuple):
    values: dict[str, NDArray[Any]]
    task: str
    size: int


class _Command(NamedTuple):
    work: Callable[[], None]
    forgives: bool
    done: Future[None]


class EncodingThread:
    """Hands frames to a writer, in order, in a thread of its own.

    Args:
        writer: nobody else may use it meanwhile.
        max_bytes: how much may wait; beyond it frames are refused.
        wait: wait for room instead of refusing (where nothing has to be on time).
    """

    def __init__(self, writer: DatasetWriter, max_bytes: int = QUEUE_BYTES, *, wait: bool = False) -> None:
        self._writer, self._max_bytes, self._wait = writer, max_bytes, wait
        self._items: queue.SimpleQueue[_Frame | _Command | None] = queue.SimpleQueue()
        self._room = threading.Condition()
        self._bytes = 0
        self._failure: BaseException | None = None
        self._unwanted = threading.Event()  # frames behind the last save: nobody waits for their encoding
        self._saves_asked = self._saves_done = 0
        self._thread: threading.Thread | None = threading.Thread(target=self._work, name="encoding")
        self._thread.start()

    @property
    def waiting_bytes(self) -> int:
        """How much is not written yet."""
        return self._bytes

    def add(self, frame: Mapping[str, NDArray[Any]], task: str) -> bool:
        """Copy a frame into the queue; False if there is no room, and then nothing of it is kept.

        Raises:
            SmolactError: an earlier frame of this episode could not be encoded or written.
        """
        if self._failure is not None:
            raise self._failure
        size = sum(value.nbytes for value in frame.values())
        with self._room:
            fits = self._fits(size)
            if not fits and self._wait:
                fits = self._room.wait_for(lambda: self._fits(size))
            if not fits:
                return False
            self._bytes += size
        # Drivers use their buffers again.
        self._items.put(_Frame({name: np.array(value) for name, value in frame.items()}, task, size))
        return True

    def save(self) -> Future[None]:
        """Finish the episode when its frames are written; the future is done when it is on disk, or has its error."""
        self._saves_asked += 1
        return self._ask(self._writer.save_episode, forgives=False)

    def discard(self) -> None:
        """Forget the frames since the last save, and the failure that they may have met."""
        self._unwanted.set()
        self._ask(self._writer.discard_episode, forgives=True).result()

    def close(self) -> None:
        """Write what is asked for, drop frames that belong to no saved episode, and end the thread."""
        if self._thread is not None:
            self._unwanted.set()
            self._ask(self._writer.discard_episode, forgives=True)
            self._items.put(None)
            self._thread.join()
            self._thread = None

    def _fits(self, size: int) -> bool:
        return self._bytes == 0 or self._bytes + size <= self._max_bytes

    def _ask(self, work: Callable[[], None], forgives: bool) -> Future[None]:
        done: Future[None] = Future()
        self._items.put(_Command(work, forgives, done))
        return done

    def _work(self) -> None:
        while (item := self._items.get()) is not None:
            if isinstance(item, _Frame):
                try:
                    if self._failure is None and (
                        self._saves_done < self._saves_asked or not self._unwanted.is_set()
                    ):
                        self._writer.add_frame(item.values, item.task)
                except BaseException as error:  # whatever it is, it belongs to the thread that records
                    self._failure = error
                with self._room:
                    self._bytes -= item.size
                    self._room.notify_all()
                continue
            if item.forgives:
                self._failure = None
                self._unwanted.clear()
            else:
                self._saves_done += 1
            try:
                if self._failure is not None:
                    raise self._failure
                item.work()
            except BaseException as error:
                item.done.set_exception(error)
            else:
                item.done.set_result(None)

"""What a policy looks at and answers, what a robot has, and whether the two fit together: the talk of the handshake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolact_client.errors import (
    MissingFeatureError,
    ObservationError,
    ProtocolError,
    SchemaMismatchError,
    TaskTooLongError,
)
from smolact_client.images import jpeg_size
from smolact_client.protocol import MAX_MESSAGE, MAX_PIXELS, Array, Jpeg

ACTION = "action"
MAX_TASK = 1000
"""Characters of an instruction."""

Names = tuple[str, ...]
Row = tuple[str, str, str, bool]
"""Of a table: a name, what the policy needs, what the robot has, whether they fit."""


@dataclass(frozen=True)
class Limits:
    """What a server takes.

    Attributes:
        message_bytes: of one message.
        pixels: of one picture.
        task_characters: of an instruction.
        deadline_s: the longest time that an observation may wait for its answer.
    """

    message_bytes: int = MAX_MESSAGE
    pixels: int = MAX_PIXELS
    task_characters: int = MAX_TASK
    deadline_s: float = 60.0


@dataclass(frozen=True)
class Schema:
    """What a policy looks at and answers, under the robot's names and in its units.

    Attributes:
        policy: its type, such as `smolvla`.
        cameras: name to (height, width) that it was trained with; pictures of other sizes are resized there.
        vectors: name to how many numbers, such as `observation.state: 6`.
        action: how many numbers an action has.
        chunk_size: how many actions an answer has.
        n_action_steps: how many of them are meant to be executed.
        names: of the numbers of a vector or of `action`, where they are known.
        action_range: (lowest, highest) of each number of the action in the data of its training, where they are known.
        takes_leftover: whether its answer can go on from what is left of the last one (`leftover.py`).
    """

    policy: str
    cameras: Mapping[str, tuple[int, int]]
    vectors: Mapping[str, int]
    action: int
    chunk_size: int
    n_action_steps: int
    names: Mapping[str, Names] = field(default_factory=dict)
    action_range: tuple[tuple[float, float], ...] | None = None
    takes_leftover: bool = False

    @property
    def inputs(self) -> Names:
        """Everything that it looks at."""
        return (*self.cameras, *self.vectors)


@dataclass(frozen=True)
class Offer:
    """What a robot has, for a server to compare with its policy.

    Attributes:
        cameras: name to (height, width).
        vectors: name to the names of its numbers.
        action: names of the numbers that it takes.
    """

    cameras: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    vectors: Mapping[str, Names] = field(default_factory=dict)
    action: Names = ()


def check_offer(schema: Schema, offer: Offer) -> None:
    """Compare what a policy needs with what a robot has; more cameras and vectors than needed are no fault.

    Raises:
        SchemaMismatchError: they do not fit together; the message has a table of both sides.
    """
    rows: list[Row] = []
    for name, size in schema.cameras.items():
        has = offer.cameras.get(name)
        rows.append((name, _size(size), "—" if has is None else _size(has), has is not None))
    for name, count in (*schema.vectors.items(), (ACTION, schema.action)):
        found = offer.action if name == ACTION else offer.vectors.get(name, ())
        known = schema.names.get(name)
        fits = len(found) == count and (known is None or known == found)
        rows.append((name, _numbers(count, known), _numbers(len(found), found) if found else "—", fits))
    extra: list[Row] = [
        (name, "—", "not looked at", True) for name in offer.cameras if name not in schema.cameras
    ]
    if all(fits for *_, fits in rows):
        return
    table = _table([("", "the policy", "the robot", True), *rows, *extra])
    wrong = ", ".join(name for name, *_, fits in rows if not fits)
    raise SchemaMismatchError(
        f"The robot does not fit the policy in {wrong}:\n{table}\n"
        "Name the robot's cameras and joints as in the policy's training, or serve the policy that belongs to this robot."
    )


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"


def _numbers(count: int, names: Sequence[str] | None) -> str:
    return f"{count}: {', '.join(names)}" if names else f"{count}"


def _table(rows: Sequence[Row]) -> str:
    widths = [max(map(len, column)) for column in ([row[0] for row in rows], [row[1] for row in rows])]
    return "\n".join(
        f"  {name.ljust(widths[0])}  {left.ljust(widths[1])}  {right}{'' if fits else '   ✗'}"
        for name, left, right, fits in rows
    )


def check_observation(schema: Schema, limits: Limits, arrays: Mapping[str, Array], task: str | None) -> None:
    """Whether a policy can look at it. Both sides ask: the client before it sends, the server before it believes.

    Raises:
        MissingFeatureError: a camera or vector is not there.
        TaskTooLongError: the instruction is too long.
        ObservationError: another shape, dtype or name, a number that is not finite, no instruction.
    """
    missing = [name for name in schema.inputs if name not in arrays]
    if missing:
        raise MissingFeatureError(
            f"The observation lacks {', '.join(missing)}. The policy looks at {', '.join(schema.inputs)}; "
            f"there is {', '.join(arrays) or 'nothing'}."
        )
    if task is not None and len(task) > limits.task_characters:
        raise TaskTooLongError(
            f"The instruction has {len(task)} characters: the server reads {limits.task_characters}. Shorten it."
        )
    if task is not None and not task.strip():
        raise ObservationError(
            "The instruction is empty: say what the robot should do. (None: nothing, on purpose.)"
        )
    for name, array in arrays.items():
        if name in schema.cameras:
            _check_picture(name, array, limits)
        elif name in schema.vectors:
            _check_vector(name, array, schema.vectors[name])
        else:
            raise ObservationError(
                f"The policy does not look at '{name}', but at {', '.join(schema.inputs)}."
            )


def _check_picture(name: str, array: Array, limits: Limits) -> None:
    if not isinstance(array, Jpeg) and (array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3):
        raise ObservationError(
            f"'{name}' is {array.shape} {array.dtype}: expected a picture (height, width, 3) uint8."
        )
    try:
        height, width = picture_size(array)
    except ProtocolError as error:
        raise ObservationError(f"'{name}' can't be read: {error}") from error
    if height * width > limits.pixels:
        raise ObservationError(
            f"'{name}' has {height}×{width} pixels: the server takes {limits.pixels}. Send a smaller picture."
        )


def picture_size(array: Array) -> tuple[int, int]:
    """Height and width of a picture; of a JPEG from its header.

    Raises:
        ProtocolError: it is no JPEG that is taken here.
    """
    return jpeg_size(array.data) if isinstance(array, Jpeg) else (array.shape[0], array.shape[1])


def _check_vector(name: str, array: Array, size: int) -> None:
    if isinstance(array, Jpeg) or array.shape != (size,) or array.dtype != np.float32:
        found = "a JPEG" if isinstance(array, Jpeg) else f"{array.shape} {array.dtype}"
        raise ObservationError(f"'{name}' is {found}: expected ({size},) float32.")
    if not np.isfinite(array).all():
        raise ObservationError(f"'{name}' holds a number that is not finite: a sensor or a driver is broken.")


def check_chunk(chunk: Any, schema: Schema) -> NDArray[np.float32]:
    """A chunk as it may be used: (T, A) float32, finite.

    Raises:
        ProtocolError: it is something else.
    """
    if (
        not isinstance(chunk, np.ndarray)
        or chunk.dtype != np.float32
        or chunk.ndim != 2
        or chunk.shape[1] != schema.action
        or not np.isfinite(chunk).all()
    ):
        raise ProtocolError(f"The answer is not a finite chunk (actions, {schema.action}) float32.")
    return chunk

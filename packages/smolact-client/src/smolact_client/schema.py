"""What a policy looks at and answers, what a robot has, and whether the two fit together: the talk of the handshake."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
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
        requests: how many observations of one session may wait for their answers.
    """

    message_bytes: int = MAX_MESSAGE
    pixels: int = MAX_PIXELS
    task_characters: int = MAX_TASK
    deadline_s: float = 60.0
    requests: int = 1


@dataclass(frozen=True)
class Schema:
    """What a policy looks at and answers, under the robot's names and in its units.

    Attributes:
        policy: its type, such as `smolvla`.
        cameras: name to (height, width) that it was trained with; pictures of other sizes are resized there.
        absent_cameras: how many of them an observation may lack; the policy sees them masked.
        placeholders: how many further cameras it has that no robot has (`empty_camera_0`, …); None if it can lack no camera.
        vectors: name to how many numbers, such as `observation.state: 6`.
        action: how many numbers an action has.
        chunk_size: how many actions an answer has.
        n_action_steps: how many of them are meant to be executed.
        names: of the numbers of a vector or of `action`, where they are known.
        action_range: (lowest, highest) of each number of the action in the data of its training, where they are known.
        takes_leftover: whether its answer can go on from what is left of the last one (`leftover.py`).
        units: of the numbers of a vector or of `action`, where they are known.
        any_names: whether a robot's numbers may have other names than those of the policy's training.
        fps: actions a second in its training, where that is known.
        rename_map: a robot's names to those of the policy, as they are in use; what is said of missing cameras keeps it.
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
    absent_cameras: int = 0
    placeholders: int | None = 0
    units: Mapping[str, Names] = field(default_factory=dict)
    any_names: bool = False
    fps: float | None = None
    rename_map: Mapping[str, str] = field(default_factory=dict)

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
        units: of the numbers of a vector or of `action`, where they are known.
    """

    cameras: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    vectors: Mapping[str, Names] = field(default_factory=dict)
    action: Names = ()
    units: Mapping[str, Names] = field(default_factory=dict)


def missing_cameras(
    expected: Iterable[str], offered: Container[str], may_be_absent: int
) -> tuple[Names, bool]:
    """Which of a policy's cameras are not there, and whether it does without: one must be there, `may_be_absent` need not."""
    wanted = tuple(expected)
    missing = tuple(name for name in wanted if name not in offered)
    return missing, not missing or (len(missing) <= may_be_absent and len(missing) < len(wanted))


def map_faults(
    rename_map: Mapping[str, str], policy: Collection[str], offered: Collection[str], where: str
) -> list[str]:
    """A sentence for each entry of a rename map that starts or ends at a name that is not there.

    Args:
        rename_map: the names that are offered to the policy's.
        policy: the policy's names.
        offered: the names that there are, before they are renamed.
        where: what offers them.
    """
    faults = []
    for old, new in rename_map.items():
        if old not in offered:
            meant = _nearest(old, offered)
            faults.append(
                f"The rename map leads from '{old}', which {where} does not have, to '{new}'.{meant}"
            )
        elif new not in policy:
            meant = _nearest(new, policy)
            faults.append(f"The rename map leads '{old}' to '{new}', which the policy does not have.{meant}")
    return faults


def _nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean '…'?`, by what stands behind the last dot: cameras have the rest in common."""
    ends = {one.rpartition(".")[2]: one for one in known}
    near = difflib.get_close_matches(name.rpartition(".")[2], ends, n=1)
    return f" Did you mean '{ends[near[0]]}'?" if near else ""


def same_names(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two lists name the same joints in the same order, by today's or by LeRobot's older names.

    Names that only count (`state_0, state_1, …`, as a simulation has them) say nothing, and agree with any.
    """
    if len(one) == len(other) and (_only_counts(one) or _only_counts(other)):
        return True
    return [joint_name(name) for name in one] == [joint_name(name) for name in other]


def same_in_another_order(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two lists name the same joints in another order: each number would move another joint."""
    return not same_names(one, other) and sorted(map(joint_name, one)) == sorted(map(joint_name, other))


def _only_counts(names: Sequence[str]) -> bool:
    return all(re.fullmatch(rf"[a-z_]*?_?{number}", name.lower()) for number, name in enumerate(names))


def joint_name(name: str) -> str:
    """A joint's name without what differs between versions of LeRobot."""
    # LeRobot's datasets of 2024 have main_shoulder_pan where those of today have shoulder_pan.pos.
    return name.lower().removesuffix(".pos").removeprefix("main_")


def check_offer(schema: Schema, offer: Offer) -> Names:
    """Compare what a policy needs with what a robot has; more cameras and vectors than needed are no fault.

    Returns:
        the cameras that the robot does not have, and the policy does without.

    Raises:
        SchemaMismatchError: they do not fit together; the message has a table of both sides, and what settles it.
    """
    rows: list[Row] = []
    missing, does_without = missing_cameras(schema.cameras, offer.cameras, schema.absent_cameras)
    for name, size in schema.cameras.items():
        has = offer.cameras.get(name)
        shown = _size(has) if has else "— (masked)" if does_without else "—"
        rows.append((name, _size(size), shown, has is not None or does_without))
    other_names = False
    for name, count in (*schema.vectors.items(), (ACTION, schema.action)):
        found = offer.action if name == ACTION else offer.vectors.get(name, ())
        known, fits = schema.names.get(name), len(found) == count
        if fits and known is not None and not same_names(known, found):
            permuted = same_in_another_order(known, found)
            fits = schema.any_names and not permuted
            other_names |= not permuted
        rows.append((name, _numbers(count, known), _numbers(len(found), found) if found else "—", fits))
        units, theirs = schema.units.get(name), offer.units.get(name)
        if units and theirs and units != theirs:
            rows.append((f"{name}, units", ", ".join(units), ", ".join(theirs), False))
    extra: list[Row] = [
        (name, "—", "not looked at", True) for name in offer.cameras if name not in schema.cameras
    ]
    if all(fits for *_, fits in rows):
        return missing
    table = _table([("", "the policy", "the robot", True), *rows, *extra])
    wrong = ", ".join(name for name, *_, fits in rows if not fits)
    raise SchemaMismatchError(
        f"The robot does not fit the policy in {wrong}:\n{table}\n{' '.join(_ways_out(schema, offer, other_names))}"
    )


def _ways_out(schema: Schema, offer: Offer, other_names: bool) -> list[str]:
    """What settles it, with the flags of the command that loads the policy (`smolact rollout`, `record` or `serve`)."""
    ways = []
    missing, does_without = missing_cameras(schema.cameras, offer.cameras, schema.absent_cameras)
    if not does_without:
        unused = [name for name in offer.cameras if name not in schema.cameras]
        renamed = dict(zip(unused, missing, strict=False))
        known = {schema.rename_map.get(name, name) for name in schema.inputs}
        ways += map_faults(schema.rename_map, known, (*offer.cameras, *offer.vectors), "the robot")
        if renamed:
            # The flag takes the place of the whole map: what of it is in use stays.
            pairs = {
                old: new for old, new in schema.rename_map.items() if old in (*offer.cameras, *offer.vectors)
            }
            pairs |= {old: schema.rename_map.get(new, new) for old, new in renamed.items()}
            pairs = {old: new for old, new in pairs.items() if old != new}
            flag = (
                f"--rename_map='{json.dumps(pairs)}' (check which is which)" if pairs else "no --rename_map"
            )
            ways.append(f"Cameras: {flag}.")
        left = len(missing) - len(renamed)
        if schema.placeholders is not None and 0 < left < len(schema.cameras):
            ways.append(
                f"Without {left} of its cameras: --policy.empty_cameras={schema.placeholders + left}."
            )
    if other_names:
        ways.append("If the joints are the same under other names: --check_names=false.")
    return [*ways, "Otherwise take the policy that was trained on this robot."]


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
    cameras, does_without = missing_cameras(schema.cameras, arrays, schema.absent_cameras)
    missing = [*(() if does_without else cameras), *(name for name in schema.vectors if name not in arrays)]
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

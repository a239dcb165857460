"""The schema of a policy, the offer of a robot, and the checks whether they match."""

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
"""Maximum characters of an instruction."""

Names = tuple[str, ...]
Row = tuple[str, str, str, bool]
"""A row of the comparison: name, the policy's value, the robot's value, whether they match."""


@dataclass(frozen=True)
class Limits:
    """The limits of a server.

    Attributes:
        message_bytes: maximum of a message.
        pixels: maximum of an image.
        task_characters: maximum of an instruction.
        deadline_s: the longest deadline of an observation, in seconds.
        requests: how many observations of one session may wait for their answers.
    """

    message_bytes: int = MAX_MESSAGE
    pixels: int = MAX_PIXELS
    task_characters: int = MAX_TASK
    deadline_s: float = 60.0
    requests: int = 1


@dataclass(frozen=True)
class Schema:
    """A policy's inputs and outputs, with the robot's names and units.

    Attributes:
        policy: its type, such as `smolvla`.
        cameras: name to the (height, width) of its training; the server resizes images of other sizes.
        absent_cameras: how many of them an observation may lack; the policy sees them masked.
        placeholders: how many further cameras it has that no robot has (`empty_camera_0`, …); None if it can lack no camera.
        vectors: name to dimension, such as `observation.state: 6`.
        action: the dimension of an action.
        chunk_size: the number of actions in an answer.
        n_action_steps: how many of them are meant to be executed.
        names: of the dimensions of a vector or of `action`, where known.
        action_range: (lowest, highest) of each action dimension in the training data, where known.
        takes_leftover: whether a chunk can continue the last one's remaining actions (`leftover.py`).
        units: of the dimensions of a vector or of `action`, where known.
        any_names: whether a robot's dimensions may have other names than those of the training.
        fps: the training data's frame rate, where known.
        rename_map: the robot's names to the policy's, as in use; suggestions for missing cameras include it.
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
        """The names of all cameras and vectors."""
        return (*self.cameras, *self.vectors)


@dataclass(frozen=True)
class Offer:
    """A robot's features, which a server compares with its policy's schema.

    Attributes:
        cameras: name to (height, width).
        vectors: name to the names of its dimensions.
        action: the names of an action's dimensions.
        units: of the dimensions of a vector or of `action`, where known.
    """

    cameras: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    vectors: Mapping[str, Names] = field(default_factory=dict)
    action: Names = ()
    units: Mapping[str, Names] = field(default_factory=dict)


def missing_cameras(
    expected: Iterable[str], offered: Container[str], may_be_absent: int
) -> tuple[Names, bool]:
    """Return a policy's missing cameras, and whether it can run: at most `may_be_absent` are missing, and at least one is not."""
    names = tuple(expected)
    missing = tuple(name for name in names if name not in offered)
    return missing, not missing or (len(missing) <= may_be_absent and len(missing) < len(names))


def map_faults(
    rename_map: Mapping[str, str], policy: Collection[str], offered: Collection[str], where: str
) -> list[str]:
    """Return a sentence for each entry of a rename map that has an unknown source or target.

    Args:
        rename_map: offered names to the policy's.
        policy: the policy's names.
        offered: the offered names before renaming.
        where: the source of the offered names.
    """
    faults = []
    for old, new in rename_map.items():
        if old not in offered:
            hint = _nearest(old, offered)
            faults.append(
                f"The rename map leads from '{old}', which {where} does not have, to '{new}'.{hint}"
            )
        elif new not in policy:
            hint = _nearest(new, policy)
            faults.append(f"The rename map leads '{old}' to '{new}', which the policy does not have.{hint}")
    return faults


def _nearest(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean '…'?`, comparing only the part after the last dot: cameras share the rest."""
    ends = {candidate.rpartition(".")[2]: candidate for candidate in known}
    near = difflib.get_close_matches(name.rpartition(".")[2], ends, n=1)
    return f" Did you mean '{ends[near[0]]}'?" if near else ""


def same_names(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether two lists name the same joints in the same order, in LeRobot's current or older names.

    Names that are only numbered (`state_0, state_1, …`, as in simulations) match any.
    """
    if len(first) == len(second) and (_are_numbered(first) or _are_numbered(second)):
        return True
    return [joint_name(name) for name in first] == [joint_name(name) for name in second]


def same_in_another_order(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether two lists name the same joints in a different order, so that values would move the wrong joints."""
    return not same_names(first, second) and sorted(map(joint_name, first)) == sorted(map(joint_name, second))


def _are_numbered(names: Sequence[str]) -> bool:
    return all(re.fullmatch(rf"[a-z_]*?_?{number}", name.lower()) for number, name in enumerate(names))


def joint_name(name: str) -> str:
    """Return a joint's name without the affixes that differ between versions of LeRobot."""
    # LeRobot's datasets of 2024 have main_shoulder_pan, current ones shoulder_pan.pos.
    return name.lower().removesuffix(".pos").removeprefix("main_")


def check_offer(schema: Schema, offer: Offer) -> Names:
    """Raise a `SchemaMismatchError` unless the robot's offer matches the policy's schema; extra features are allowed.

    Returns:
        the cameras that the robot lacks and the policy can run without.

    Raises:
        SchemaMismatchError: they do not match; the message has a table of both sides, and suggestions.
    """
    rows: list[Row] = []
    missing, does_without = missing_cameras(schema.cameras, offer.cameras, schema.absent_cameras)
    for name, size in schema.cameras.items():
        offered_size = offer.cameras.get(name)
        shown = _size(offered_size) if offered_size else "— (masked)" if does_without else "—"
        rows.append((name, _size(size), shown, offered_size is not None or does_without))
    other_names = False
    for name, count in (*schema.vectors.items(), (ACTION, schema.action)):
        names = offer.action if name == ACTION else offer.vectors.get(name, ())
        known, fits = schema.names.get(name), len(names) == count
        if fits and known is not None and not same_names(known, names):
            permuted = same_in_another_order(known, names)
            fits = schema.any_names and not permuted
            other_names |= not permuted
        rows.append((name, _numbers(count, known), _numbers(len(names), names) if names else "—", fits))
        units, offered_units = schema.units.get(name), offer.units.get(name)
        if units and offered_units and units != offered_units:
            rows.append((f"{name}, units", ", ".join(units), ", ".join(offered_units), False))
    extra: list[Row] = [
        (name, "—", "not looked at", True) for name in offer.cameras if name not in schema.cameras
    ]
    if all(fits for *_, fits in rows):
        return missing
    table = _table([("", "the policy", "the robot", True), *rows, *extra])
    wrong = ", ".join(name for name, *_, fits in rows if not fits)
    raise SchemaMismatchError(
        f"The robot does not fit the policy in {wrong}:\n{table}\n{' '.join(_suggestions(schema, offer, other_names))}"
    )


def _suggestions(schema: Schema, offer: Offer, other_names: bool) -> list[str]:
    """Return suggestions, with the flags of the command that loads the policy (`smolact rollout`, `record` or `serve`)."""
    suggestions = []
    missing, does_without = missing_cameras(schema.cameras, offer.cameras, schema.absent_cameras)
    if not does_without:
        unused = [name for name in offer.cameras if name not in schema.cameras]
        renamed = dict(zip(unused, missing, strict=False))
        known = {schema.rename_map.get(name, name) for name in schema.inputs}
        suggestions += map_faults(schema.rename_map, known, (*offer.cameras, *offer.vectors), "the robot")
        if renamed:
            # The flag replaces the whole map, so its entries in use are repeated.
            pairs = {
                old: new for old, new in schema.rename_map.items() if old in (*offer.cameras, *offer.vectors)
            }
            pairs |= {old: schema.rename_map.get(new, new) for old, new in renamed.items()}
            pairs = {old: new for old, new in pairs.items() if old != new}
            flag = (
                f"--rename_map='{json.dumps(pairs)}' (check which is which)" if pairs else "no --rename_map"
            )
            suggestions.append(f"Cameras: {flag}.")
        remaining = len(missing) - len(renamed)
        if schema.placeholders is not None and 0 < remaining < len(schema.cameras):
            suggestions.append(
                f"Without {remaining} of its cameras: --policy.empty_cameras={schema.placeholders + remaining}."
            )
    if other_names:
        suggestions.append("If the joints are the same under other names: --check_names=false.")
    return [*suggestions, "Otherwise take the policy that was trained on this robot."]


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


def check_observation(
    schema: Schema, limits: Limits, arrays: Mapping[str, Array], task: Any, seed: Any = None
) -> None:
    """Raise an error unless the observation fits the policy. The client checks before it sends, the server on receipt.

    Args:
        schema, limits: the policy's and the server's.
        arrays: the observation.
        task: the instruction, a text or None.
        seed: from 0 to 2⁶³ − 1, or None.

    Raises:
        MissingFeatureError: a camera or vector is missing.
        TaskTooLongError: the instruction is too long.
        ObservationError: a wrong shape, dtype or name, a non-finite value, an empty instruction, or a seed out of range.
    """
    cameras, does_without = missing_cameras(schema.cameras, arrays, schema.absent_cameras)
    missing = [*(() if does_without else cameras), *(name for name in schema.vectors if name not in arrays)]
    if missing:
        raise MissingFeatureError(
            f"The observation lacks {', '.join(missing)}. The policy looks at {', '.join(schema.inputs)}; "
            f"there is {', '.join(arrays) or 'nothing'}."
        )
    if not isinstance(task, (str, type(None))):
        raise ObservationError(f"The instruction is {task!r:.60}: expected a text, or None.")
    if not (seed is None or (type(seed) is int and 0 <= seed < 2**63)):
        raise ObservationError("The seed is no number from 0 to 2⁶³ − 1.")
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
            _check_image(name, array, limits)
        elif name in schema.vectors:
            _check_vector(name, array, schema.vectors[name])
        else:
            raise ObservationError(
                f"The policy does not look at '{name}', but at {', '.join(schema.inputs)}."
            )


def _check_image(name: str, array: Array, limits: Limits) -> None:
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
    """Return an image's height and width; a JPEG's from its header.

    Raises:
        ProtocolError: it is not an accepted JPEG.
    """
    return jpeg_size(array.data) if isinstance(array, Jpeg) else (array.shape[0], array.shape[1])


def _check_vector(name: str, array: Array, size: int) -> None:
    if isinstance(array, Jpeg) or array.shape != (size,) or array.dtype != np.float32:
        found = "a JPEG" if isinstance(array, Jpeg) else f"{array.shape} {array.dtype}"
        raise ObservationError(f"'{name}' is {found}: expected ({size},) float32.")
    if not np.isfinite(array).all():
        raise ObservationError(f"'{name}' holds a number that is not finite: a sensor or a driver is broken.")


def check_chunk(chunk: Any, schema: Schema) -> NDArray[np.float32]:
    """Return `chunk` if it is a finite (T, A) float32 array.

    Raises:
        ProtocolError: it is not.
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

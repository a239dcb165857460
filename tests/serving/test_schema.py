"""What a handshake says of a policy, and what settles it where a robot does not fit."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgpack
import pytest

from smolact_client.errors import ProtocolError, SchemaMismatchError
from smolact_client.handshake import read_schema
from smolact_client.schema import Offer, Schema, check_offer

TWO = Schema(
    "one",
    {"front": (48, 64), "hand": (48, 64)},
    {},
    3,
    5,
    4,
    placeholders=None,
    fps=30.0,
    rename_map={"front": "top", "hand": "wrist"},
)
SENT = msgpack.unpackb(msgpack.packb(dataclasses.asdict(TWO)))


def test_a_schema_comes_back_as_it_was() -> None:
    assert read_schema(SENT) == TWO
    assert read_schema({**SENT, "placeholders": 2, "fps": None}) == dataclasses.replace(
        TWO, placeholders=2, fps=None
    )


@pytest.mark.parametrize("fps", [float("inf"), -5, 0, 1e6, "30", True])
def test_a_rate_at_which_no_robot_moves_is_refused(fps: Any) -> None:
    with pytest.raises(ProtocolError, match="'fps' of a handshake is"):
        read_schema({**SENT, "fps": fps})


def test_the_map_that_is_advised_keeps_what_is_in_use() -> None:
    robot = Offer({"front": (48, 64), "side": (48, 64)}, {}, ("a", "b", "c"))
    with pytest.raises(SchemaMismatchError) as error:
        check_offer(TWO, robot)
    assert """--rename_map='{"front": "top", "side": "wrist"}'""" in str(error.value)


@pytest.mark.parametrize(
    ("rename_map", "cameras", "said"),
    [
        (
            {"frnt": "top"},
            ("frnt", "wrist"),
            "leads from 'frnt', which the robot does not have, to 'top'. Did you mean 'front'?",
        ),
        (
            {"front": "tpo"},
            ("top", "wrist"),
            "leads 'front' to 'tpo', which the policy does not have. Did you mean 'top'?",
        ),
    ],
)
def test_a_wrong_map_is_named_as_the_cause(
    rename_map: dict[str, str], cameras: tuple[str, ...], said: str
) -> None:
    schema = dataclasses.replace(TWO, cameras=dict.fromkeys(cameras, (48, 64)), rename_map=rename_map)
    robot = Offer({"front": (48, 64), "wrist": (48, 64)}, {}, ("a", "b", "c"))
    with pytest.raises(SchemaMismatchError) as error:
        check_offer(schema, robot)
    assert said in str(error.value)
    assert """--rename_map='{"front": "top"}'""" in str(error.value)


@pytest.mark.parametrize(("placeholders", "advised"), [(None, False), (0, True)])
def test_only_a_policy_that_may_lack_cameras_is_advised_to(placeholders: int | None, advised: bool) -> None:
    schema = dataclasses.replace(TWO, placeholders=placeholders)
    with pytest.raises(SchemaMismatchError) as error:
        check_offer(schema, Offer({"front": (48, 64)}, {}, ("a", "b", "c")))
    assert ("--policy.empty_cameras=1" in str(error.value)) == advised

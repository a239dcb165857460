"""Checks that a policy fits a robot, and the rate of its actions."""

from __future__ import annotations

import logging
from dataclasses import replace

from smolact.errors import FeatureError
from smolact.robots.base import Robot, RobotFeatures
from smolact.runtime.policy import Policy
from smolact.runtime.remote import ServedPolicy
from smolact_client.errors import SchemaMismatchError
from smolact_client.schema import Names, Offer, check_offer

logger = logging.getLogger(__name__)


def check_robot(policy: Policy, features: RobotFeatures, *, any_names: bool = False) -> Names:
    """Raise unless the robot has the policy's inputs and takes its actions; return the policy's cameras that it lacks.

    Args:
        policy: the policy.
        features: the robot's features.
        any_names: whether the robot's joints may have other names than those of the policy's training.

    Raises:
        FeatureError: they do not fit; the message has a table of both sides, and a fix.
    """
    schema = replace(policy.schema, any_names=policy.schema.any_names or any_names)
    offer = Offer(features.cameras, features.vectors, features.action, features.units)
    try:
        return check_offer(schema, offer)
    except SchemaMismatchError as error:
        hint = " The policy is on a server: --rename_map and --policy.… are flags of `smolact serve` there."
        raise FeatureError(f"{error}{hint if isinstance(policy, ServedPolicy) else ''}") from error


def rate_of(requested: float | None, robot: Robot, trained: float | None) -> float:
    """Return the actions per second: the requested rate, or else the simulation's, the training's, or 30."""
    default = getattr(getattr(robot, "env", None), "fps", None) or trained or 30.0
    return float(default if requested is None else requested)


def note_rate(rate: float, trained: float | None) -> None:
    """Log a warning if the rate differs from that of the policy's training."""
    if trained is not None and rate != trained:
        logger.warning(
            "Actions are sent at %g a second, and the policy was trained at %g: its motions take %.2f times as long.",
            rate,
            trained,
            trained / rate,
        )


def note_masked(cameras: Names) -> None:
    """Log a warning that names the policy's cameras that a robot lacks."""
    if cameras:
        logger.warning("Not on the robot, shown to the policy as masked black: %s.", ", ".join(cameras))

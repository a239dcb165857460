"""Aloha's joint values in the pi runtime's convention, with which some SmolVLA checkpoints were trained (`adapt_to_pi_aloha`).

The runtime flips the sign of two joints of each arm, and measures a gripper as an angle where Aloha measures a stroke.
Source: openpi's Aloha transforms; the constants come from the Interbotix drivers and from a real Trossen robot.
"""

from __future__ import annotations

import torch
from torch import Tensor

from smolact.errors import FeatureError

_WIDTH = 14
_FLIPPED = (1, 2, 8, 9)
_GRIPPERS = (6, 13)

_STROKE = (0.01844, 0.05800)  # metres, closed and open
_ARM, _HORN = 0.036, 0.022  # metres
_RUNTIME_ANGLE = (0.4, 1.5)  # radians
_ALOHA_ANGLE = (-0.6213, 1.4910)  # radians


def _to_unit(x: Tensor, low: float, high: float) -> Tensor:
    return (x - low) / (high - low)


def _from_unit(x: Tensor, low: float, high: float) -> Tensor:
    return x * (high - low) + low


def _stroke_to_angle(x: Tensor) -> Tensor:
    stroke = _from_unit(x, *_STROKE)
    sine = (_HORN**2 + stroke**2 - _ARM**2) / (2 * _HORN * stroke)
    return _to_unit(torch.arcsin(sine.clamp(-1.0, 1.0)), *_RUNTIME_ANGLE)


def _convert(joints: Tensor, gripper: Tensor) -> Tensor:
    sign = torch.ones(_WIDTH, dtype=joints.dtype, device=joints.device)
    sign[list(_FLIPPED)] = -1
    converted = joints * sign
    converted[..., list(_GRIPPERS)] = gripper
    return converted


def _grippers(joints: Tensor) -> Tensor:
    if joints.shape[-1] != _WIDTH:
        raise FeatureError(
            f"adapt_to_pi_aloha expects the {_WIDTH} joints of an Aloha robot, found {joints.shape[-1]}. "
            "Set --policy.adapt_to_pi_aloha=false."
        )
    return joints[..., list(_GRIPPERS)]


def decode_state(state: Tensor) -> Tensor:
    """Convert Aloha's state (…, 14) to the runtime's convention."""
    return _convert(state, _stroke_to_angle(_grippers(state)))


def encode_actions(actions: Tensor) -> Tensor:
    """Convert the runtime's actions (…, 14) to Aloha's convention."""
    return _convert(actions, _to_unit(_from_unit(_grippers(actions), *_RUNTIME_ANGLE), *_ALOHA_ANGLE))


def decode_actions(actions: Tensor) -> Tensor:
    """Convert Aloha's actions (…, 14) to the runtime's convention: the inverse of `encode_actions`."""
    return _convert(actions, _to_unit(_from_unit(_grippers(actions), *_ALOHA_ANGLE), *_RUNTIME_ANGLE))

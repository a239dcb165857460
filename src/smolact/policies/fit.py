"""Checks that a policy fits a dataset, an environment or a robot: cameras, sizes, names. All commands use the same rules.

A policy may lack `empty_cameras` of its cameras; those named `empty_camera_N` never exist. The missing ones are determined by
`smolact_client.schema.missing_cameras`, which a robot's client uses, too. No torch here.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Collection, Mapping, Sequence

from smolact.errors import FeatureError
from smolact.policies.configuration import PolicyConfig
from smolact.policies.embodiment import Embodiment
from smolact.types import ACTION, IMAGES, STATE, PolicyFeature, RobotNames, is_image_key
from smolact_client.schema import Names, map_faults, missing_cameras, same_in_another_order, same_names

logger = logging.getLogger(__name__)

_PLACEHOLDER = f"{IMAGES}.empty_camera_"


def usable_names(saved: Mapping[str, str], features: Collection[str]) -> dict[str, str]:
    """Return the entries of a checkpoint's rename map that give a dataset's features names that it does not have itself."""
    return {old: new for old, new in saved.items() if old in features and new not in features}


def real_cameras(config: PolicyConfig) -> dict[str, PolicyFeature]:
    """Return the cameras that a robot can have, without LeRobot's placeholders (`observation.images.empty_camera_0`, …)."""
    return {
        key: feature
        for key, feature in config.input_features.items()
        if is_image_key(key) and not key.startswith(_PLACEHOLDER)
    }


def placeholders(config: PolicyConfig) -> int:
    """Return the number of a policy's cameras that are LeRobot's placeholders."""
    return sum(key.startswith(_PLACEHOLDER) for key in config.input_features)


def has_empty_cameras(config: PolicyConfig) -> bool:
    """Return whether the policy has the setting `empty_cameras`."""
    return any(item.name == "empty_cameras" for item in dataclasses.fields(config))


def absent_cameras(config: PolicyConfig) -> int:
    """Return how many of its real cameras a policy may lack: `empty_cameras` minus the placeholders."""
    return max(0, config.empty_cameras - placeholders(config))


def check_cameras(
    config: PolicyConfig,
    offered: Mapping[str, PolicyFeature],
    rename_map: Mapping[str, str],
    where: str = "the dataset",
) -> None:
    """Raise unless the policy's cameras are available, except for `empty_cameras` that it may lack.

    Args:
        offered: the available cameras, already renamed.
        rename_map: the map by which they were renamed.
        where: their source, for the message.

    Raises:
        FeatureError: cameras are missing; the message lists both sides and the remedies.
    """
    expected = real_cameras(config)
    if not expected and not config.uses_cameras:
        return
    if not expected:
        raise FeatureError(
            f"The policy expects no camera; {where} has {', '.join(offered) or 'none either'}. A vision-language-action "
            "policy needs one: choose data with cameras, or set --policy.input_features."
        )
    missing, is_acceptable = missing_cameras(expected, offered, absent_cameras(config))
    unused = [key for key in offered if key not in expected]
    if is_acceptable:
        if missing:
            logger.warning("Not in %s, shown to the policy as masked black: %s.", where, ", ".join(missing))
        if unused:
            logger.warning("In %s, not read by the policy: %s.", where, ", ".join(unused))
        return
    original = {target: source for source, target in rename_map.items()}
    shown = {key: f"{original.get(key, key)} {feature.shape}" for key, feature in offered.items()}
    table = side_by_side(expected, shown, where)
    remedies = _remedies(config, offered, missing, unused, rename_map, where)
    camera_map = {old: new for old, new in rename_map.items() if is_image_key(old) or is_image_key(new)}
    names = [original.get(key, key) for key in offered]
    faults = "".join(f"{fault}\n" for fault in map_faults(camera_map, config.input_features, names, where))
    raise FeatureError(
        f"The policy's cameras are not in {where}: {', '.join(missing)}.\n{table}\n{faults}Settle it {remedies}."
    )


def _remedies(
    config: PolicyConfig,
    offered: Collection[str],
    missing: Sequence[str],
    unused: Sequence[str],
    rename_map: Mapping[str, str],
    where: str,
) -> str:
    original = {target: source for source, target in rename_map.items()}
    proposal = {original.get(source, source): target for source, target in zip(unused, missing, strict=False)}
    left = len(missing) - len(proposal)
    remedies, without = [], ""
    if proposal:
        # Keep the map's entries for vectors, and for available cameras whose name the proposal does not give to another one.
        used = {
            new: old
            for old, new in rename_map.items()
            if (new in offered or not is_image_key(new)) and new not in proposal.values()
        }
        full = {old: new for new, old in used.items() if old not in proposal} | proposal
        full = {old: new for old, new in full.items() if old != new}
        if full:
            remedies.append(f"--rename_map='{json.dumps(full)}' (check which camera is which)")
        else:
            without = "without --rename_map"
    if 0 < left < len(real_cameras(config)) and has_empty_cameras(config):
        remedies.append(
            f"--policy.empty_cameras={placeholders(config) + left} (masked black in place of the rest)"
        )
    if not (remedies or without):
        remedies.append(f"{'data' if where == 'the dataset' else where} that has them")
    return " and ".join([without] * bool(without) + ["with " + " and ".join(remedies)] * bool(remedies))


def vector_map_faults(
    config: PolicyConfig, offered: Collection[str], rename_map: Mapping[str, str], where: str
) -> str:
    """Describe the faults of a rename map for vectors and the remedy, if one of the policy's vectors is missing; empty if there are none."""
    original = {new: old for old, new in rename_map.items()}
    vectors = {old: new for old, new in rename_map.items() if not is_image_key(old)}
    faults = map_faults(vectors, config.input_features, [original.get(key, key) for key in offered], where)
    return " ".join([*faults, "Correct --rename_map, or leave it out."]) if faults else ""


def check_env_sizes(
    config: PolicyConfig, offered: Mapping[str, PolicyFeature], rename_map: Mapping[str, str] | None = None
) -> None:
    """Raise a `FeatureError` if an environment's state or action is missing or has another size than the policy's."""
    for key, feature in config.features.items():
        if is_image_key(key):
            continue
        actual = offered.get(key)
        if actual is None or actual.shape != feature.shape:
            faults = "" if actual else vector_map_faults(config, offered, rename_map or {}, "the environment")
            advice = faults or (
                "It was trained for another robot or task: choose the environment that its demonstrations came from, or map "
                "names with --env.mapping=FILE."
            )
            raise FeatureError(
                f"The policy has '{key}' {feature.shape}, the environment "
                f"{'has none' if actual is None else f'has {actual.shape}'}. {advice}"
            )


def check_names(
    config: PolicyConfig, names: Mapping[str, Names], units: Mapping[str, Names], where: str
) -> None:
    """Raise if the names or units of dimensions differ from the policy's training. Those known on one side only are not compared.

    Args:
        names: a vector (or `action`), under the policy's name, to the names of its dimensions.
        units: the same for their units.

    Raises:
        FeatureError: they differ; the message has both lists.
    """
    known = config.embodiment
    if known is None:
        return
    for key, ours in known.names.items():
        theirs = names.get(key, ())
        if theirs and not same_names(ours, theirs):
            difference = (
                "the same joints in another order"
                if same_in_another_order(ours, theirs)
                else "other joints, or other names"
            )
            raise FeatureError(
                f"'{key}' has {difference} in {where} than in the policy's training.\n"
                f"  the policy  {', '.join(ours)}\n  {where}  {', '.join(theirs)}"
            )
    for key, ours in known.units.items():
        theirs = units.get(key, ())
        if theirs and theirs != ours:
            raise FeatureError(
                f"'{key}' is in other units in {where} ({', '.join(theirs)}) than in the policy's training ({', '.join(ours)})."
            )


def check_env_names(
    config: PolicyConfig,
    robot: RobotNames | None,
    rename_map: Mapping[str, str] | None = None,
    *,
    any_names: bool = False,
) -> None:
    """Call `check_names` with the robot that an environment simulates, if it declares one.

    Args:
        rename_map: the environment's names to the policy's.
        any_names: whether joints may have other names, though not the same ones in another order.

    Raises:
        FeatureError: they differ; the message has both lists.
    """
    if robot is None:
        return
    keys = [(rename_map or {}).get(key, key) for key in (STATE, ACTION)]
    known = config.embodiment or Embodiment()
    permuted = any(same_in_another_order(known.names.get(key, ()), robot.names) for key in keys)
    names = {} if any_names and not permuted else dict.fromkeys(keys, robot.names)
    check_names(config, names, dict.fromkeys(keys, robot.units), "the environment")


def note_other_robot(policy: PolicyConfig, robot: Embodiment) -> None:
    """Log a warning if a policy is fine-tuned on another robot: this is either intended or a mistake."""
    try:
        check_names(policy, robot.names, robot.units, "the dataset")
    except FeatureError as error:
        logger.warning("%s\nThe training goes on: the policy learns the dataset's.", error)


def side_by_side(expected: Mapping[str, PolicyFeature], offered: Mapping[str, str], where: str) -> str:
    """Return two columns: the policy's features with the offered ones, then those that are offered and not read."""
    rows = [("the policy expects", f"{where} has")]
    rows += [(f"{key} {feature.shape}", offered.get(key, "—")) for key, feature in expected.items()]
    rows += [("—", text) for key, text in offered.items() if key not in expected]
    width = max(len(left) for left, _ in rows)
    return "\n".join(f"  {left.ljust(width)}   {right}" for left, right in rows)

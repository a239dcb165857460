"""Whether a policy fits what it meets (a dataset, an environment, a robot): cameras, sizes, names. One rule for all commands.

A policy may do without `empty_cameras` of its cameras; those that are called `empty_camera_N` are never there. Which are
missing is decided by `smolact_client.schema.missing_cameras`, which a robot's client asks, too. No torch here.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping, Sequence

from smolact.errors import FeatureError
from smolact.policies.configuration import PolicyConfig
from smolact.policies.embodiment import Embodiment
from smolact.types import IMAGES, PolicyFeature, is_image_key
from smolact_client.schema import Names, map_faults, missing_cameras, same_in_another_order, same_names

logger = logging.getLogger(__name__)

_PLACEHOLDER = f"{IMAGES}.empty_camera_"


def usable_names(saved: Mapping[str, str], features: Collection[str]) -> dict[str, str]:
    """What of a checkpoint's rename map leads from a dataset's features to names that it has not itself."""
    return {old: new for old, new in saved.items() if old in features and new not in features}


def real_cameras(config: PolicyConfig) -> dict[str, PolicyFeature]:
    """The cameras that a robot can have, without LeRobot's placeholders (`observation.images.empty_camera_0`, …)."""
    return {
        key: feature
        for key, feature in config.input_features.items()
        if is_image_key(key) and not key.startswith(_PLACEHOLDER)
    }


def placeholders(config: PolicyConfig) -> int:
    """How many of a policy's cameras are LeRobot's placeholders."""
    return sum(key.startswith(_PLACEHOLDER) for key in config.input_features)


def absent_cameras(config: PolicyConfig) -> int:
    """How many of its real cameras a policy may do without: `empty_cameras`, of which placeholders take their share."""
    return max(0, getattr(config, "empty_cameras", 0) - placeholders(config))


def check_cameras(
    config: PolicyConfig,
    offered: Mapping[str, PolicyFeature],
    rename_map: Mapping[str, str],
    where: str = "the dataset",
) -> None:
    """Raise unless the policy's cameras are there, except for `empty_cameras` that it may do without.

    Args:
        config: the policy's.
        offered: the cameras that there are, already renamed.
        rename_map: how they were renamed.
        where: what has them, for the message.

    Raises:
        FeatureError: cameras are missing; the message shows both sides and what would settle it.
    """
    expected = real_cameras(config)
    if not expected:
        raise FeatureError(
            f"The policy expects no camera; {where} has {', '.join(offered) or 'none either'}. A vision-language-action "
            "policy needs one: choose data with cameras, or set --policy.input_features."
        )
    missing, does_without = missing_cameras(expected, offered, absent_cameras(config))
    unused = [key for key in offered if key not in expected]
    if does_without:
        if missing:
            logger.warning("Not in %s, shown to the policy as masked black: %s.", where, ", ".join(missing))
        if unused:
            logger.warning("In %s, not read by the policy: %s.", where, ", ".join(unused))
        return
    back = {target: source for source, target in rename_map.items()}
    shown = {key: f"{back.get(key, key)} {feature.shape}" for key, feature in offered.items()}
    table = side_by_side(expected, shown, where)
    ways = _ways_out(config, offered, missing, unused, rename_map, where)
    of_cameras = {old: new for old, new in rename_map.items() if is_image_key(old) or is_image_key(new)}
    there = [back.get(key, key) for key in offered]
    faults = "".join(f"{fault}\n" for fault in map_faults(of_cameras, config.input_features, there, where))
    raise FeatureError(
        f"The policy's cameras are not in {where}: {', '.join(missing)}.\n{table}\n{faults}Settle it {ways}."
    )


def _ways_out(
    config: PolicyConfig,
    offered: Collection[str],
    missing: Sequence[str],
    unused: Sequence[str],
    rename_map: Mapping[str, str],
    where: str,
) -> str:
    back = {target: source for source, target in rename_map.items()}
    proposal = {back.get(source, source): target for source, target in zip(unused, missing, strict=False)}
    left = len(missing) - len(proposal)
    ways, without = [], ""
    if proposal:
        # Of the map what is in use stays: its names lead to cameras that are there, and to none that is now another's; and
        # what is of no camera.
        used = {
            new: old
            for old, new in rename_map.items()
            if (new in offered or not is_image_key(new)) and new not in proposal.values()
        }
        full = {old: new for new, old in used.items() if old not in proposal} | proposal
        full = {old: new for old, new in full.items() if old != new}
        if full:
            ways.append(f"--rename_map='{json.dumps(full)}' (check which camera is which)")
        else:
            without = "without --rename_map"
    if 0 < left < len(real_cameras(config)) and hasattr(config, "empty_cameras"):
        ways.append(
            f"--policy.empty_cameras={placeholders(config) + left} (masked black in place of the rest)"
        )
    if not (ways or without):
        ways.append(f"{'data' if where == 'the dataset' else where} that has them")
    return " and ".join([without] * bool(without) + ["with " + " and ".join(ways)] * bool(ways))


def vector_map_faults(
    config: PolicyConfig, offered: Collection[str], rename_map: Mapping[str, str], where: str
) -> str:
    """What of a rename map for vectors is wrong, and what to do, where a vector of the policy is missing; empty if nothing is.

    Args:
        config: the policy's.
        offered: the names that there are, already renamed.
        rename_map: how they were renamed.
        where: what has them.
    """
    back = {new: old for old, new in rename_map.items()}
    vectors = {old: new for old, new in rename_map.items() if not is_image_key(old)}
    faults = map_faults(vectors, config.input_features, [back.get(key, key) for key in offered], where)
    return " ".join([*faults, "Correct --rename_map, or leave it out."]) if faults else ""


def check_env_sizes(
    config: PolicyConfig,
    offered: Mapping[str, PolicyFeature],
    rename_map: Mapping[str, str] | None = None,
) -> None:
    """Raise a `FeatureError` if state or action of an environment are missing or of another size than the policy's."""
    for key, feature in {**config.input_features, **config.output_features}.items():
        if is_image_key(key):
            continue
        found = offered.get(key)
        if found is None or found.shape != feature.shape:
            faults = "" if found else vector_map_faults(config, offered, rename_map or {}, "the environment")
            advice = faults or (
                "It was trained for another robot or task: choose the environment that its demonstrations came from, or map "
                "names with --env.mapping=FILE."
            )
            raise FeatureError(
                f"The policy has '{key}' {feature.shape}, the environment "
                f"{'has none' if found is None else f'has {found.shape}'}. {advice}"
            )


def check_names(
    config: PolicyConfig, names: Mapping[str, Names], units: Mapping[str, Names], where: str
) -> None:
    """Raise unless numbers have the names and units of the policy's training, where both sides say them.

    Args:
        config: the policy's, whose `embodiment` says what it was trained on.
        names: a vector (or `action`), under the policy's name, to the names of its numbers.
        units: the same of their units.
        where: what has them, for the message.

    Raises:
        FeatureError: they differ; the message has both lists.
    """
    known = config.embodiment
    if known is None:
        return
    for key, ours in known.names.items():
        theirs = names.get(key, ())
        if theirs and not same_names(ours, theirs):
            how = (
                "the same joints in another order"
                if same_in_another_order(ours, theirs)
                else "other joints, or other names"
            )
            raise FeatureError(
                f"'{key}' has {how} in {where} than in the policy's training.\n"
                f"  the policy  {', '.join(ours)}\n  {where}  {', '.join(theirs)}"
            )
    for key, ours in known.units.items():
        theirs = units.get(key, ())
        if theirs and theirs != ours:
            raise FeatureError(
                f"'{key}' is in other units in {where} ({', '.join(theirs)}) than in the policy's training ({', '.join(ours)})."
            )


def note_other_robot(policy: PolicyConfig, robot: Embodiment) -> None:
    """Say it if a policy goes on to learn from another robot than before: that is meant, or it is a mistake."""
    try:
        check_names(policy, robot.names, robot.units, "the dataset")
    except FeatureError as error:
        logger.warning("%s\nThe training goes on: the policy learns the dataset's.", error)


def side_by_side(expected: Mapping[str, PolicyFeature], offered: Mapping[str, str], where: str) -> str:
    """Two columns: what the policy expects, and what there is for it; then what is there and not read.

    Args:
        expected: name to feature.
        offered: name to text.
        where: what offers them.
    """
    rows = [("the policy expects", f"{where} has")]
    rows += [(f"{key} {feature.shape}", offered.get(key, "—")) for key, feature in expected.items()]
    rows += [("—", text) for key, text in offered.items() if key not in expected]
    width = max(len(left) for left, _ in rows)
    return "\n".join(f"  {left.ljust(width)}   {right}" for left, right in rows)

"""Publishing the trained policy, for `--policy.push_to_hub`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from smolact.errors import SmolactError
from smolact.policies.sharing import contents
from smolact.training.config import TrainConfig
from smolact.training.tracking import Ended, Listener
from smolact.uploads import check_repository, publish

logger = logging.getLogger(__name__)


def check_publication(config: TrainConfig) -> None:
    """Raise a `HubError`, before the first step, if the policy is to be published and the account may not write there."""
    if config.policy.published_as is None:
        return
    private = config.policy.settings.get("private")
    repo_id = check_repository(config.policy.published_as, "model", private=private, make=not config.check)
    logger.info("When the run is done its policy is published as '%s'.", repo_id)


def publish_unless_stopped(ended: Ended, config: TrainConfig) -> None:
    """Publish the policy of a complete run; of one that was stopped, say how."""
    if not ended.is_complete:
        return
    if ended.checkpoint is not None and not ended.is_stopped:
        publish_policy(ended.checkpoint, config)
    elif config.policy.published_as is not None:
        logger.warning("Stopped before the policy was published. %s", _hint(ended.checkpoint, config))


def report_complete(ended: Ended, config: TrainConfig, listeners: Sequence[Listener]) -> None:
    """Report that a resumed run is complete already, and publish its policy if the settings ask for it."""
    assert ended.checkpoint is not None
    is_timed = config.train_minutes is not None
    logger.info(
        "The run is complete: %s is of step %d, and the run has %s. Give more to train on.",
        ended.checkpoint,
        ended.step,
        f"--train_minutes={config.train_minutes:g}" if is_timed else f"--steps={config.n_steps}",
    )
    for listener in listeners:
        listener(ended)
    if not config.check:
        publish_policy(ended.checkpoint, config)


def publish_policy(checkpoint: Path, config: TrainConfig) -> None:
    """Publish the trained policy, if the settings ask for it.

    Raises:
        SmolactError: publishing failed; the message contains the remedy.
    """
    repo_id, private = config.policy.published_as, config.policy.settings.get("private")
    if repo_id is None:
        return
    try:
        page = publish(contents(checkpoint, name=repo_id), repo_id, private=private)
    except SmolactError as error:
        raise type(error)(
            f"The training is done, and its policy is in {checkpoint}; only publishing failed. {error.args[-1]} "
            f"{_hint(checkpoint, config)}"
        ) from error
    logger.info("Published: %s", page)


def _hint(checkpoint: Path | None, config: TrainConfig) -> str:
    private_flag = " --private" if config.policy.settings.get("private") else ""
    return f"Publish it with: smolact push {checkpoint} {config.policy.published_as}{private_flag}"

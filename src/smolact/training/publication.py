"""Publishing the trained policy, for `--policy.push_to_hub`."""

from __future__ import annotations

import logging
from pathlib import Path

from smolact.errors import SmolactError
from smolact.policies.sharing import contents
from smolact.training.config import TrainConfig
from smolact.training.tracking import Ended
from smolact.uploads import check_repository, publish

logger = logging.getLogger(__name__)


def check_publication(config: TrainConfig) -> None:
    """Check, before the first step, that the policy can be published in the end, if it is to be.

    Raises:
        HubError: the account may not write there.
    """
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
            f"The training is done, and its policy is in {checkpoint}; only publishing failed. {_message(error)} "
            f"{_hint(checkpoint, config)}"
        ) from error
    logger.info("Published: %s", page)


def _hint(checkpoint: Path | None, config: TrainConfig) -> str:
    private_flag = " --private" if config.policy.settings.get("private") else ""
    return f"Publish it with: smolact push {checkpoint} {config.policy.published_as}{private_flag}"


def _message(error: SmolactError) -> str:
    return str(error.args[-1]) if error.args else str(error)

"""The search for the policy's folder in an IL-Studio run."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from smolact.errors import NotFoundError, list_siblings
from smolact.policies.configuration import CONFIG_FILE, find_policy
from smolact.policies.sharing import CHECKPOINT_PATTERNS

logger = logging.getLogger(__name__)

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def find_checkpoint(folder_or_id: str | Path) -> Path:
    """Return a policy's folder: the given one, the last `checkpoint-N` of an unfinished run, or a Hub id's local copy.

    Raises:
        NotFoundError, HubError: it is missing.
    """
    folder = find_policy(folder_or_id, patterns=CHECKPOINT_PATTERNS)
    if (folder / CONFIG_FILE).is_file():
        return folder
    paths = {int(match[1]): path for path in folder.iterdir() if (match := _CHECKPOINT.fullmatch(path.name))}
    complete = {number: path for number, path in paths.items() if (path / CONFIG_FILE).is_file()}
    if not complete:
        raise NotFoundError(
            f"{folder} holds no policy: it has no {CONFIG_FILE}, and no checkpoint-N that has one. "
            f"{list_siblings(folder / CONFIG_FILE)}"
        )
    logger.info("%s has no policy of its own: taking %s.", folder, complete[max(complete)].name)
    return complete[max(complete)]

"""Which folder of an IL-Studio run holds a policy."""

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
    """The folder of a policy: the given one, the last `checkpoint-N` of a run that did not end, or a Hub id's copy.

    Raises:
        NotFoundError, HubError: it is not there.
    """
    folder = find_policy(folder_or_id, patterns=CHECKPOINT_PATTERNS)
    if (folder / CONFIG_FILE).is_file():
        return folder
    found = {int(match[1]): path for path in folder.iterdir() if (match := _CHECKPOINT.fullmatch(path.name))}
    whole = {number: path for number, path in found.items() if (path / CONFIG_FILE).is_file()}
    if not whole:
        raise NotFoundError(
            f"{folder} holds no policy: it has no {CONFIG_FILE}, and no checkpoint-N that has one. "
            f"{list_siblings(folder / CONFIG_FILE)}"
        )
    logger.info("%s has no policy of its own: taking %s.", folder, whole[max(whole)].name)
    return whole[max(whole)]

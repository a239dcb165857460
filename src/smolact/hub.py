"""Finds a model or dataset by name: a local folder, or a repository of the Hugging Face Hub. Uploads are in `uploads.py`."""

from __future__ import annotations

import errno
import functools
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from smolact import durable
from smolact.errors import HubError, NotFoundError, WriteError, did_you_mean, list_siblings

RECORDINGS = Path("outputs/datasets")
"""The folder where `smolact record` saves a dataset given by name only, and where that name is looked up."""

logger = logging.getLogger(__name__)

REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def find_folder(
    name: str | Path,
    kind: str,
    *,
    root: str | Path | None = None,
    patterns: Sequence[str] | None = None,
    revision: str | None = None,
) -> Path:
    """The local folder of `name`: `root` if given; else `name` if it is a folder; else the dataset recorded under that name
    (logged); else the Hub's copy.

    Args:
        name: a folder, or a Hub id such as `lerobot/smolvla_base`.
        root: a local folder to use instead; no network call is made then.
        patterns: glob patterns of the files to fetch; all files when None.
        revision: branch, tag or commit on the Hub.

    Raises:
        NotFoundError: neither such a folder nor such a repository exists.
        HubError: the Hub refused (401, 403, 429) or can't be reached.
    """
    if root is not None or Path(name).is_dir():
        folder = Path(name if root is None else root)
        if not folder.is_dir():
            raise missing_folder(folder, kind)
        return folder
    if revision is None and (recorded := local_folder(name, kind)) is not None:
        _log_recorded(str(name), recorded, recorded.absolute())
        return recorded
    looks_local = str(Path(name).parent) != "." and Path(name).parent.is_dir()
    if durable.replacement_interrupted(Path(name)):
        raise missing_folder(Path(name), kind)
    if looks_local or not REPO_ID.fullmatch(str(name)):
        path = Path(name)
        hint = "a file, not a folder" if path.is_file() else "not there"
        raise NotFoundError(
            f"The {kind} '{name}' is {hint}: expected a folder or a Hub id like 'owner/name'. "
            f"{list_siblings(path.absolute())}"
        )
    return _download(str(name), kind, patterns, revision)


def local_folder(name: str | Path, kind: str) -> Path | None:
    """The local folder of `name`: itself, or the dataset recorded under that name; None if there is none."""
    recorded = kind == "dataset" and REPO_ID.fullmatch(str(name))
    candidates = [Path(name), RECORDINGS / name] if recorded else [Path(name)]
    return next((folder for folder in candidates if folder.is_dir()), None)


@functools.cache
def _log_recorded(name: str, folder: Path, location: Path) -> None:
    """Log, once per `location`, the recorded dataset that a name resolves to: a command may look it up several times."""
    logger.info("The dataset '%s' is the one that was recorded here: %s", name, folder)


def _suggest_recording(name: str, kind: str) -> str:
    """` Did you mean 'me/push'? …`, for the most similar name of a recorded dataset; empty if there is none."""
    folders = RECORDINGS.glob("*/*") if kind == "dataset" else ()
    suggestion = did_you_mean(name, ["/".join(folder.parts[-2:]) for folder in folders if folder.is_dir()])
    return f"{suggestion} That one was recorded here." if suggestion else ""


def missing_folder(folder: Path, kind: str) -> NotFoundError:
    """The error for a missing local folder, with its siblings and the remedy."""
    if kind == "dataset" and durable.replacement_interrupted(folder):
        return NotFoundError(
            f"The dataset folder {folder} does not exist, but {durable.backup_path(folder)} does: an edit was killed as it put "
            f"its result in place. This puts the old dataset back: smolact dataset repair --dataset.root={folder}"
        )
    return NotFoundError(f"The {kind} folder {folder} does not exist. {list_siblings(folder.absolute())}")


def _download(repo_id: str, kind: str, patterns: Sequence[str] | None, revision: str | None) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    flag = "--dataset.root=FOLDER" if kind == "dataset" else "a folder in its place"
    suggestion = _suggest_recording(repo_id, kind)
    try:
        folder = huggingface_hub.snapshot_download(
            repo_id,
            repo_type=kind,
            revision=revision,
            allow_patterns=list(patterns) if patterns is not None else None,
        )
        return Path(folder)
    except GatedRepoError as error:
        raise HubError(
            f"The {kind} '{repo_id}' is gated: accept its terms on its Hub page, then log in with `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise NotFoundError(f"The {kind} '{repo_id}' has no revision '{revision}' on the Hub.") from error
    except RepositoryNotFoundError as error:
        raise NotFoundError(
            f"The {kind} '{repo_id}' is neither a folder here nor a repository that the Hub shows you.{suggestion} Check its "
            f"spelling; if it is private, log in with `hf auth login`; if you have it on disk, give {flag}."
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
            raise WriteError(
                error.errno,
                f"The {kind} '{repo_id}' could not be kept on this disk ({error.strerror}). Free some space, or choose another "
                "place for the Hub's files: HF_HOME=FOLDER.",
            ) from error
        status = status_of(error)
        if status is not None:
            reason = {
                401: "the Hub does not accept your token (log in again with `hf auth login`)",
                403: "your token may not read it (check the token's permissions)",
                429: "the Hub limits your requests (wait a minute, or log in for a higher limit)",
            }.get(status, f"the Hub answered {status} (try again later)")
            raise HubError(f"The {kind} '{repo_id}' could not be fetched: {reason}.") from error
        raise HubError(
            f"'{repo_id}' is no folder here and the Hub can't be reached.{suggestion} Go online, or fetch the {kind} elsewhere "
            f"(`hf download {repo_id} --repo-type={kind} --local-dir=FOLDER`) and give {flag}."
        ) from error


def status_of(error: BaseException | None) -> int | None:
    """The HTTP status behind an error, None if there is none: the client wraps a refusal in other errors."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None:
            return int(status)
        error = error.__cause__
    return None


def is_snapshot(folder: Path) -> bool:
    """Whether a folder is a snapshot in the Hub's cache: one commit, with links into its repository's `blobs`."""
    repository = folder.parent.parent.name
    return folder.parent.name == "snapshots" and repository.startswith(("models--", "datasets--", "spaces--"))

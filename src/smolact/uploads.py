"""Uploads to the Hub: complete files in one atomic commit. `hub.py` downloads."""

from __future__ import annotations

import contextlib
import fnmatch
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from smolact.errors import ConfigError, HubError, NotFoundError, SmolactError
from smolact.hub import status_of

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")

PATIENCE = 300.0
"""Total seconds to wait on the Hub's request; its rate limits are per five minutes."""
TOKEN = re.compile(rb"hf_[A-Za-z0-9]{30,}")
"""Pattern of a Hub token."""
LOG_IN = "log in with `hf auth login`, or put a token with write permission into HF_TOKEN"

_NAME = re.compile(r"(?!.*(\.\.|--))(?:([A-Za-z0-9_][\w.-]*)/)?([A-Za-z0-9_][\w.-]{0,95})(?<![.-])(?<!\.git)")
_RETRY_HINT = "Nothing was published; pushed again, only what is missing is sent."
_CLIENTS = ("requests", "urllib3", "httpx", "httpx2", "httpcore")
"""Packages whose errors mean that the Hub did not answer."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Upload:
    """Files to publish.

    Attributes:
        files: name in the repository to a local file, or to the file's content.
        owned: patterns of the upload's names: such files of an earlier version are deleted in the repository.
        tag: moved to the new commit.
        notes: remarks for the publishing user: converted and omitted files.
    """

    kind: str
    files: Mapping[str, Path | bytes]
    owned: tuple[str, ...] = ()
    tag: str | None = None
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        """Refuse files with secrets.

        Raises:
            ConfigError: a file's text contains a token.
        """
        for name, content in self.files.items():
            if isinstance(content, bytes) and TOKEN.search(content):
                raise ConfigError(
                    f"{name} holds what looks like a token of the Hub (hf_…), and would be published with it. Take it out of "
                    "the file; if it was ever shown to others, revoke it: https://huggingface.co/settings/tokens"
                )

    @property
    def sizes(self) -> dict[str, int]:
        """Name to bytes."""
        return {
            name: len(content) if isinstance(content, bytes) else content.stat().st_size
            for name, content in self.files.items()
        }


def check_repository(
    repo_id: str, kind: str, *, private: bool | None = None, revision: str | None = None, make: bool = True
) -> str:
    """Raise an error unless `repo_id` is writable; creates a missing repository and sends no files.

    Args:
        repo_id: `owner/name`; a name alone is the user's own.
        private: whether a new repository is private; the owner's default when None.
        revision: the branch to write, created if missing; the main branch when None.
        make: create what is missing; otherwise check only that the user may create a missing repository.

    Returns:
        the full id.

    Raises:
        ConfigError: the name is invalid, or the repository is public and should be private.
        HubError: the token is missing or lacks permission; the Hub limits requests, or can't be reached.
    """
    if not _NAME.fullmatch(repo_id):
        raise ConfigError(
            f"'{repo_id}' can't be the name of a repository: expected owner/name of letters, digits, '-', '_' and '.', at most 96 "
            "of them, without '--' or '..', and not '.git' at the end."
        )
    import huggingface_hub
    from huggingface_hub import constants

    api = huggingface_hub.HfApi()
    with _translated_errors(repo_id, kind):
        if constants.HF_HUB_OFFLINE:
            raise HubError(
                f"HF_HUB_OFFLINE is set, so '{repo_id}' can't be written. Unset it, or push from a machine that is online."
            )
        if huggingface_hub.get_token() is None:
            raise HubError(f"To write '{repo_id}' the Hub must know who you are: {LOG_IN}.")
        repo_id = _full_repo_id(repo_id, _retry(api.whoami))
        if make:
            _retry(lambda: api.create_repo(repo_id, repo_type=kind, private=private, exist_ok=True))
        elif not _retry(lambda: api.repo_exists(repo_id, repo_type=kind)):
            return repo_id
        if private and not _retry(lambda: api.repo_info(repo_id, repo_type=kind)).private:
            raise ConfigError(
                f"The {kind} '{repo_id}' is there and public: what is pushed to it could be seen by everybody. Make it private on "
                "its settings page, choose another name, or drop the wish for privacy."
            )
        if revision is not None and make:
            _retry(lambda: api.create_branch(repo_id, branch=revision, repo_type=kind, exist_ok=True))
        # The Hub answers this request for an upload's method only with write permission.
        probe = huggingface_hub.CommitOperationAdd("README.md", b"#\n")
        _retry(lambda: api.preupload_lfs_files(repo_id, [probe], repo_type=kind, revision=revision))
    return repo_id


def publish(
    upload: Upload,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    message: str | None = None,
) -> str:
    """Upload files in one commit, and return the page's address.

    Large files are sent first and identified by their content: after an interruption the same call sends only the missing ones.
    Arguments are those of `check_repository`, which is called first; `message` is the commit's.

    Raises:
        ConfigError, HubError: as in `check_repository`; the connection broke; or a file changed meanwhile. Nothing is published
            then, unless the message says otherwise.
    """
    import huggingface_hub

    repo_id = check_repository(repo_id, upload.kind, private=private, revision=revision)
    api = huggingface_hub.HfApi()
    kind = upload.kind
    stamps = {path: _stamp(path) for path in upload.files.values() if isinstance(path, Path)}
    with _translated_errors(repo_id, kind):
        existing = _retry(lambda: list(api.list_repo_files(repo_id, repo_type=kind, revision=revision)))
        obsolete = [name for name in existing if name not in upload.files and _matches(name, upload.owned)]
        for name in obsolete:
            logger.info("Removed there, since it is of an earlier version: %s", name)
        additions = [
            huggingface_hub.CommitOperationAdd(name, content) for name, content in upload.files.items()
        ]
        try:
            _retry(
                lambda: api.preupload_lfs_files(
                    repo_id, additions, repo_type=kind, revision=revision, free_memory=False
                )
            )
        except Exception:
            _check_unchanged(stamps)
            raise
        _check_unchanged(stamps)
        commit = _retry(
            lambda: api.create_commit(
                repo_id,
                [*additions, *map(huggingface_hub.CommitOperationDelete, obsolete)],
                repo_type=kind,
                revision=revision,
                commit_message=message or f"Upload {kind} with smolact",
            )
        )
    if upload.tag is not None:
        hint = f"Its files are there, but not the tag '{upload.tag}' by which they are found: push it again."
        with _translated_errors(repo_id, kind, hint):
            _move_tag(api, repo_id, kind, upload.tag, commit.oid)
    return page_of(repo_id, kind)


def page_of(repo_id: str, kind: str) -> str:
    """Return the address of a repository's page."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"


def _full_repo_id(repo_id: str, user: Mapping[str, Any]) -> str:
    """Return `repo_id` with its owner, who must be the user or one of their organisations.

    Raises:
        HubError: the owner is another, or the token is read-only.
    """
    name = str(user.get("name"))
    owners = [name, *(str(organisation.get("name")) for organisation in user.get("orgs") or [])]
    role = ((user.get("auth") or {}).get("accessToken") or {}).get("role")
    if role == "read":
        raise HubError(f"Your token only reads, and '{repo_id}' is to be written. To write, {LOG_IN}.")
    owner = repo_id.partition("/")[0] if "/" in repo_id else name
    if owner not in owners:
        raise HubError(
            f"'{repo_id}' belongs to '{owner}', and you are logged in as {name}, who may write to: {', '.join(owners)}. Choose one "
            f"of these, or {LOG_IN}."
        )
    return repo_id if "/" in repo_id else f"{name}/{repo_id}"


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a pattern matches: without a slash it matches top-level names only, with a final `/**` all names below."""
    return any(
        name.startswith(pattern[:-2])
        if pattern.endswith("/**")
        else fnmatch.fnmatchcase(name, pattern) and "/" not in name
        for pattern in patterns
    )


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return (-1, -1)
    return status.st_size, status.st_mtime_ns


def _check_unchanged(stamps: Mapping[Path, tuple[int, int]]) -> None:
    changed = [path for path, stamp in stamps.items() if _stamp(path) != stamp]
    if changed:
        raise HubError(
            f"{changed[0]} changed while it was sent, so nothing was published. Wait until nobody writes there, and push again."
        )


def _move_tag(api: HfApi, repo_id: str, kind: str, tag: str, commit: str) -> None:
    from huggingface_hub.errors import RevisionNotFoundError

    with contextlib.suppress(RevisionNotFoundError):
        _retry(lambda: api.delete_tag(repo_id, tag=tag, repo_type=kind))
    _retry(lambda: api.create_tag(repo_id, tag=tag, revision=commit, repo_type=kind))


def _retry(call: Callable[[], T]) -> T:
    """Return `call()`; waits when the Hub limits requests, `PATIENCE` seconds at most."""
    waited = 0.0
    while True:
        try:
            return call()
        except Exception as error:
            pause = _retry_after(error)
            if pause is None or waited + pause > PATIENCE:
                raise
            logger.warning("The Hub limits requests: going on in %.0f s, as it asks.", pause)
            time.sleep(pause)
            waited += pause


def _retry_after(error: BaseException) -> float | None:
    """Return the seconds after which the Hub accepts a retry; None if unknown."""
    response = getattr(error, "response", None)
    if status_of(error) not in (429, 503) or response is None:
        return None
    seconds = str(response.headers.get("Retry-After") or "")
    if not seconds.isdigit():
        reset = re.search(r"\bt=(\d+)", str(response.headers.get("RateLimit") or ""))
        seconds = reset.group(1) if reset else ""
    return float(seconds) + 1 if seconds else None


@contextlib.contextmanager
def _translated_errors(repo_id: str, kind: str, hint: str = _RETRY_HINT) -> Iterator[None]:
    """Convert all exceptions of the Hub's client within the block to errors with a remedy."""
    try:
        yield
    except SmolactError:
        raise
    except Exception as error:  # its type depends on the client's version and the transfer method
        raise _hub_error(error, repo_id, kind, hint) from error


def _hub_error(error: Exception, repo_id: str, kind: str, hint: str) -> SmolactError:
    from huggingface_hub.errors import RevisionNotFoundError

    status = status_of(error)
    if isinstance(error, RevisionNotFoundError):
        return NotFoundError(
            f"The {kind} '{repo_id}' has no such branch. A branch is written, not a commit. {hint}"
        )
    if status == 404:
        return NotFoundError(f"The {kind} '{repo_id}' is not there, or not for you: check its name. {hint}")
    if status == 429:
        pause = _retry_after(error)
        delay = "in some minutes" if pause is None else f"in {pause:.0f} s"
        return HubError(f"The Hub limits your requests: try '{repo_id}' again {delay}. {hint}")
    reason = {
        401: f"the Hub does not accept your token: {LOG_IN} (HF_TOKEN comes first, where it is set)",
        402: "its owner's plan has no room for it",
        403: "your token may not write there. Give it that permission (https://huggingface.co/settings/tokens), ask an owner of "
        f"the repository, or {LOG_IN}",
        409: "somebody else writes to it at the same time. Wait for them",
        412: "somebody else writes to it at the same time. Wait for them",
    }.get(status or 0)
    if reason is None and status is None and _is_connection_error(error):
        reason = "the Hub can't be reached. Go online"
    if reason is None:
        detail = _first_line(error)
        reason = f"the Hub answered {status}{detail}" if status else f"sending failed{detail}"
    return HubError(f"The {kind} '{repo_id}' could not be written: {reason}. {hint}")


def _is_connection_error(error: BaseException | None) -> bool:
    while error is not None:
        if type(error).__module__.split(".")[0] in _CLIENTS or isinstance(
            error, ConnectionError | TimeoutError
        ):
            return True
        error = error.__cause__
    return False


def _first_line(error: Exception) -> str:
    """Return the message's first line, without tokens."""
    lines = str(getattr(error, "server_message", None) or error).strip().splitlines()
    line = TOKEN.sub(b"hf_...", lines[0].encode()).decode() if lines else ""
    return f" ({line[:300]})" if line else ""

"""The errors between a robot and its policy server. Catch `ClientError` for all of them.

    ClientError
    ├── ConnectError: ServerFullError, NotReadyError
    ├── ObservationError: MissingFeatureError, TaskTooLongError
    └── WrongTokenError, VersionMismatchError, SchemaMismatchError, TimedOutError, ServerLostError, PolicyFailedError,
        ProtocolError, DroppedError, ClosedError

Each has a `code`, which is sent over the wire. An error that has a builtin counterpart inherits from it: `TimedOutError` is a
`TimeoutError`, `ConnectError` a `ConnectionError`.
"""

from __future__ import annotations

from typing import ClassVar


class ClientError(Exception):
    """The base class of all errors that this package raises deliberately."""

    code: ClassVar[str] = "error"


class ConnectError(ClientError, ConnectionError):
    """No server answers at the address; a retry may help."""

    code = "no_connection"


class ServerFullError(ConnectError):
    """The server has reached its limit of clients."""

    code = "full"


class NotReadyError(ConnectError):
    """The policy on the server is warming up."""

    code = "not_ready"


class WrongTokenError(ClientError):
    """The token is wrong, or missing although the server requires one."""

    code = "wrong_token"


class VersionMismatchError(ClientError):
    """The server has another version of the protocol."""

    code = "version_mismatch"


class SchemaMismatchError(ClientError, ValueError):
    """Cameras, vectors or names of robot and policy do not match; the message has a table of both sides."""

    code = "schema_mismatch"


class ObservationError(ClientError, ValueError):
    """The observation does not fit the policy: a wrong shape or dtype, a non-finite value, or an empty task."""

    code = "bad_observation"


class MissingFeatureError(ObservationError):
    """The observation lacks a camera or a vector that the policy needs."""

    code = "missing_feature"


class TaskTooLongError(ObservationError):
    """The instruction exceeds the server's limit."""

    code = "task_too_long"


class TimedOutError(ClientError, TimeoutError):
    """No answer arrived within the deadline; a later one is dropped."""

    code = "timed_out"


class ServerLostError(ClientError, ConnectionError):
    """The connection broke and was not restored in time."""

    code = "lost"


class PolicyFailedError(ClientError, RuntimeError):
    """The policy failed on the server; its log has the reason."""

    code = "policy_failed"


class ProtocolError(ClientError, ValueError):
    """The bytes are not a message of this protocol, or the message is not valid at this point."""

    code = "protocol"


class DroppedError(ClientError):
    """The request was dropped because `reset` was called while it waited."""

    code = "dropped"


class ClosedError(ClientError):
    """This client was closed."""

    code = "closed"


_BY_CODE = {
    error.code: error
    for error in (
        ConnectError,
        ServerFullError,
        NotReadyError,
        WrongTokenError,
        VersionMismatchError,
        SchemaMismatchError,
        ObservationError,
        MissingFeatureError,
        TaskTooLongError,
        TimedOutError,
        ServerLostError,
        PolicyFailedError,
        ProtocolError,
        DroppedError,
        ClosedError,
    )
}


def error_of(code: str, message: str) -> ClientError:
    """Return the error for a code that was received; a `ClientError` for an unknown code."""
    return _BY_CODE.get(code, ClientError)(message)

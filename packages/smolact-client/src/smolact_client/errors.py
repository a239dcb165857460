"""What can go wrong between a robot and its policy server, as a tree. Catch `ClientError` for all of it.

    ClientError
    ├── ConnectError            nobody answers at that address
    │   ├── ServerFullError     it serves as many clients as it may
    │   └── NotReadyError       it is warming up
    ├── WrongTokenError         the server wants another token, or one at all
    ├── VersionMismatchError    the server speaks another version of the protocol
    ├── SchemaMismatchError     cameras, numbers or names of robot and policy do not fit together
    ├── ObservationError        an observation that the policy can't look at
    │   ├── MissingFeatureError a camera or a vector is not in it
    │   └── TaskTooLongError    its instruction is longer than the server reads
    ├── TimedOutError           no answer within the deadline
    ├── ServerLostError         the connection broke, and no new one could be made in time
    ├── PolicyFailedError       the policy failed; the server's log has the reason
    ├── ProtocolError           bytes that are no message of this protocol
    ├── DroppedError            the question was dropped: `reset` was called while it waited
    └── ClosedError             this client was closed

Each has a `code`, which is what goes over the wire. Errors that a caller would expect as a builtin also are that builtin:
`TimedOutError` is a `TimeoutError`, `ConnectError` a `ConnectionError`.
"""

from __future__ import annotations

from typing import ClassVar


class ClientError(Exception):
    """The root of every error that this package raises on purpose."""

    code: ClassVar[str] = "error"


class ConnectError(ClientError, ConnectionError):
    """Nobody answers at that address; trying again may help."""

    code = "no_connection"


class ServerFullError(ConnectError):
    """The server serves as many clients as it may."""

    code = "full"


class NotReadyError(ConnectError):
    """The server is warming up."""

    code = "not_ready"


class WrongTokenError(ClientError):
    """The server wants another token, or one at all."""

    code = "wrong_token"


class VersionMismatchError(ClientError):
    """The server speaks another version of the protocol."""

    code = "version_mismatch"


class SchemaMismatchError(ClientError, ValueError):
    """Cameras, numbers or names of robot and policy do not fit together; the message has a table of both sides."""

    code = "schema_mismatch"


class ObservationError(ClientError, ValueError):
    """An observation that the policy can't look at: another shape or dtype, a number that is not finite, no task."""

    code = "bad_observation"


class MissingFeatureError(ObservationError):
    """A camera or a vector that the policy looks at is not in the observation."""

    code = "missing_feature"


class TaskTooLongError(ObservationError):
    """The instruction is longer than the server reads."""

    code = "task_too_long"


class TimedOutError(ClientError, TimeoutError):
    """No answer came within the deadline; one that comes later is dropped."""

    code = "timed_out"


class ServerLostError(ClientError, ConnectionError):
    """The connection broke, and no new one could be made in time."""

    code = "lost"


class PolicyFailedError(ClientError, RuntimeError):
    """The policy failed on the server, whose log has the reason."""

    code = "policy_failed"


class ProtocolError(ClientError, ValueError):
    """Bytes that are no message of this protocol, or a message that has no place here."""

    code = "protocol"


class DroppedError(ClientError):
    """The question was dropped: `reset` was called while it waited."""

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
    """The error that the other side told of; a `ClientError` for a code that this version does not know."""
    return _BY_CODE.get(code, ClientError)(message)

"""Ask a smolact policy server for actions: the wire's protocol and a client, without torch."""

from __future__ import annotations

from smolact_client.client import Answer, RemotePolicy
from smolact_client.errors import (
    ClientError,
    ClosedError,
    ConnectError,
    DroppedError,
    MissingFeatureError,
    NotReadyError,
    ObservationError,
    PolicyFailedError,
    ProtocolError,
    SchemaMismatchError,
    ServerFullError,
    ServerLostError,
    TaskTooLongError,
    TimedOutError,
    VersionMismatchError,
    WrongTokenError,
)
from smolact_client.leftover import Leftover
from smolact_client.policy import ChunkPolicy
from smolact_client.schema import Limits, Offer, Schema

__all__ = [
    "Answer",
    "ChunkPolicy",
    "ClientError",
    "ClosedError",
    "ConnectError",
    "DroppedError",
    "Leftover",
    "Limits",
    "MissingFeatureError",
    "NotReadyError",
    "ObservationError",
    "Offer",
    "PolicyFailedError",
    "ProtocolError",
    "RemotePolicy",
    "Schema",
    "SchemaMismatchError",
    "ServerFullError",
    "ServerLostError",
    "TaskTooLongError",
    "TimedOutError",
    "VersionMismatchError",
    "WrongTokenError",
]

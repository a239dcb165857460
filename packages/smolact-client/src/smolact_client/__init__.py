"""Ask a smolact policy server for actions: the wire's protocol and a client, without torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_HOME = {
    "Answer": "smolact_client.client",
    "RemotePolicy": "smolact_client.client",
    **dict.fromkeys(
        (
            "ClientError",
            "ClosedError",
            "ConnectError",
            "DroppedError",
            "MissingFeatureError",
            "NotReadyError",
            "ObservationError",
            "PolicyFailedError",
            "ProtocolError",
            "SchemaMismatchError",
            "ServerFullError",
            "ServerLostError",
            "TaskTooLongError",
            "TimedOutError",
            "VersionMismatchError",
            "WrongTokenError",
        ),
        "smolact_client.errors",
    ),
    "Leftover": "smolact_client.leftover",
    "ChunkPolicy": "smolact_client.policy",
    "Limits": "smolact_client.schema",
    "Offer": "smolact_client.schema",
    "Schema": "smolact_client.schema",
}


def __getattr__(name: str) -> Any:
    # On first use: who only wants a module of this package, as every policy does, does not import a WebSocket client.
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if f"{__name__}.{name}" in _HOME.values():
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module 'smolact_client' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

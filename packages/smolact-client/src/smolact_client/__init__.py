"""The client of a smolact policy server and its wire protocol, without torch."""

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
    from smolact_client.policy import ChunkPolicy, Request
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
    "Request",
    "Schema",
    "SchemaMismatchError",
    "ServerFullError",
    "ServerLostError",
    "TaskTooLongError",
    "TimedOutError",
    "VersionMismatchError",
    "WrongTokenError",
]

_MODULES = ("client", "errors", "leftover", "policy", "schema")
_MODULE_OF = {
    "Answer": "client",
    "ChunkPolicy": "policy",
    "Leftover": "leftover",
    "Limits": "schema",
    "Offer": "schema",
    "RemotePolicy": "client",
    "Request": "policy",
    "Schema": "schema",
}
"""The module of each public name that is not an error."""


def __getattr__(name: str) -> Any:
    # Imported on first use: a policy needs modules of this package, but not its WebSocket client.
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in __all__:
        return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF.get(name, 'errors')}"), name)
    raise AttributeError(f"module 'smolact_client' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

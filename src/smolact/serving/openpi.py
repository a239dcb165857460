"""A server for openpi's clients: the same policy, queue and limits behind openpi's protocol (`smolact_client.openpi`).

The server sends the first message of that protocol, and only once the policy has warmed up. Arrays of an observation are found by
the schema's names, with `/` for `.` and nested maps; or by the last part of the name, where that is unambiguous.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolact.serving.server import PolicyServer
from smolact.serving.sessions import Session, log
from smolact_client import handshake, openpi
from smolact_client.errors import ObservationError, ProtocolError
from smolact_client.protocol import Array, Message, MessageKind
from smolact_client.schema import Schema


class OpenpiSession(Session):
    """One openpi client's connection."""

    def _encode(self, message: Message) -> bytes | str | None:
        if message.kind is MessageKind.WELCOME:
            self._metadata = {"schema": message.fields["schema"]}
            return openpi.pack(self._metadata) if message.fields["ready"] else None
        if message.kind is MessageKind.READY:
            return openpi.pack(self._metadata)
        if message.kind is MessageKind.ERROR:
            return str(message.fields["message"])  # their client raises a text message as an error
        return openpi.pack(
            {
                "actions": message.arrays["action"],
                "server_timing": {
                    "infer_ms": message.fields["inference_ms"],
                    "waited_ms": message.fields["waited_ms"],
                },
            }
        )


class OpenpiServer(PolicyServer):
    """`PolicyServer` for clients of openpi."""

    session_type = OpenpiSession

    async def _run_session(self, session: Session) -> None:
        log("session_began", session=session.number, client="openpi")
        self._register(session)
        welcome = handshake.welcome(self._schema, self.limits, self.is_ready)
        await session.send(MessageKind.WELCOME, fields=welcome)
        async for data in session.socket:
            self.metrics.received += len(data)
            if isinstance(data, str):
                raise ProtocolError("A text came: openpi's wire has binary messages only.")
            number = session.received + 1
            try:
                fields, arrays = read_observation(self._schema, openpi.unpack(data))
            except ObservationError as error:
                self._refuse(session, error, number)
                continue
            self._on_message(
                session, Message(MessageKind.OBSERVATION, session.id, number, number, fields, arrays)
            )


def read_observation(schema: Schema, observation: Any) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return the fields and arrays of an openpi observation. Keys that the schema does not name are ignored.

    Raises:
        ProtocolError: the observation is no map.
        ObservationError: a name is ambiguous, or an array of a vector is not numeric.
    """
    if not isinstance(observation, dict):
        raise ProtocolError("An observation is a map of names.")
    values = dict(_flatten(observation))
    fields = {"task": values["prompt"]} if "prompt" in values else {}
    arrays: dict[str, Array] = {}
    for name in schema.inputs:
        suffix = name.rpartition(".")[2]
        candidates = [key for key in values if key.rpartition(".")[2] == suffix]
        if name not in values and len(candidates) > 1:
            raise ObservationError(f"Which one is '{name}': {', '.join(candidates)}? Send it as '{name}'.")
        key = name if name in values else candidates[0] if candidates else None
        if key is not None:
            arrays[name] = _to_image(values[key]) if name in schema.cameras else _to_vector(name, values[key])
    return fields, arrays


def _flatten(observation: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in observation.items():
        name = prefix + key.replace("/", ".")
        if isinstance(value, dict):
            yield from _flatten(value, f"{name}.")
        else:
            yield name, value


def _to_image(value: Any) -> NDArray[Any]:
    image: NDArray[Any] = np.asarray(value)
    if image.ndim == 3 and image.shape[0] == 3 and image.shape[2] != 3:
        image = image.transpose(1, 2, 0)  # openpi's Aloha sends (3, H, W)
    return image


def _to_vector(name: str, value: Any) -> NDArray[np.float32]:
    try:
        return np.atleast_1d(np.asarray(value, np.float32))
    except (TypeError, ValueError) as error:
        raise ObservationError(f"'{name}' holds no numbers.") from error

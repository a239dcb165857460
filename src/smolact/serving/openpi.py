"""A server that openpi's clients can ask: the same policy, queue and limits, behind openpi's wire (`smolact_client.openpi`).

Their first message is the server's, so they are told nothing until the policy is warm. An observation's parts are found by the
schema's names, with `/` for `.` and maps within maps; or by the last part of the name alone, where that is clear.
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

    def _written(self, message: Message) -> bytes | str | None:
        if message.kind is MessageKind.WELCOME:
            self._metadata = {"schema": message.fields["schema"]}
            return openpi.pack(self._metadata) if message.fields["ready"] else None
        if message.kind is MessageKind.READY:
            return openpi.pack(self._metadata)
        if message.kind is MessageKind.ERROR:
            return str(message.fields["message"])  # a text, which their client raises
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

    async def _talk(self, session: Session) -> None:
        log("session_began", session=session.number, client="openpi")
        self._admit(session)
        told = handshake.welcome(self._schema, self.limits, self.is_ready)
        await session.send(MessageKind.WELCOME, fields=told)
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
            self._take(session, Message(MessageKind.OBSERVATION, session.id, number, number, fields, arrays))


def read_observation(schema: Schema, said: Any) -> tuple[dict[str, Any], dict[str, Array]]:
    """What an openpi client says, as fields and arrays of an observation; what the schema does not name is left out.

    Raises:
        ProtocolError: it is no map.
        ObservationError: two parts could be meant by one name.
    """
    if not isinstance(said, dict):
        raise ProtocolError("An observation is a map of names.")
    found = dict(_flat(said))
    fields = {"task": found["prompt"]} if "prompt" in found else {}
    arrays: dict[str, Array] = {}
    for name in schema.inputs:
        last = name.rpartition(".")[2]
        alike = [key for key in found if key.rpartition(".")[2] == last]
        if name not in found and len(alike) > 1:
            raise ObservationError(f"Which one is '{name}': {', '.join(alike)}? Send it as '{name}'.")
        key = name if name in found else alike[0] if alike else None
        if key is not None:
            arrays[name] = _picture(found[key]) if name in schema.cameras else _numbers(name, found[key])
    return fields, arrays


def _flat(said: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in said.items():
        name = before + key.replace("/", ".")
        if isinstance(value, dict):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def _picture(value: Any) -> NDArray[Any]:
    picture: NDArray[Any] = np.asarray(value)
    if picture.ndim == 3 and picture.shape[0] == 3 and picture.shape[2] != 3:
        picture = picture.transpose(1, 2, 0)  # openpi's Aloha sends (3, H, W)
    return picture


def _numbers(name: str, value: Any) -> NDArray[np.float32]:
    try:
        return np.atleast_1d(np.asarray(value, np.float32))
    except (TypeError, ValueError) as error:
        raise ObservationError(f"'{name}' holds no numbers.") from error

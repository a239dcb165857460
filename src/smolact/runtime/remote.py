"""A policy on a server of smolact's or openpi's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from smolact.errors import ConfigError
from smolact.runtime.observation import translate_errors
from smolact.runtime.policy import Chunk, Policy, Request
from smolact_client import ClientError, RemotePolicy
from smolact_client.openpi import SCHEME, OpenpiPolicy, read_openpi_schema


class ServedPolicy(Policy):
    """A policy on a server; the processors run there, and the server batches the requests of one call.

    Args:
        client: the open connection, see `connect`.
        n_action_steps: the executed actions of a chunk; None for the server's number.
    """

    def __init__(self, client: RemotePolicy | OpenpiPolicy, n_action_steps: int | None = None) -> None:
        self._client, schema = client, client.schema
        self.schema = schema if n_action_steps is None else replace(schema, n_action_steps=n_action_steps)

    def predict(self, requests: Sequence[Request]) -> list[Chunk]:
        """See `Policy`."""
        with translate_errors():
            return self._client.predict(requests)

    def reset(self) -> None:
        """Begin an episode. A request that waits in another thread is dropped."""
        with translate_errors():
            self._client.reset()

    def warm_up(self, max_batch: int = 1) -> None:
        """Do nothing: the server has warmed up its policy."""

    def close(self) -> None:
        """Close the connection. A request that waits in another thread fails at once."""
        self._client.close()


def connect(
    url: str,
    *,
    n_action_steps: int | None = None,
    images: Literal["raw", "jpeg"] = "raw",
    openpi_schema: Path | None = None,
    **settings: Any,
) -> ServedPolicy:
    """Connect to the policy server at `url`.

    Args:
        url: `ws://…`, `wss://…` of smolact's server, or either behind `openpi+`.
        n_action_steps: the executed actions of a chunk; None for the server's number.
        images: the encoding of pictures.
        openpi_schema: a JSON file with the schema of an openpi server's policy, if the server does not send one.
        settings: further arguments of the client (`token`, `timeout`, `ca_file`).

    Raises:
        ConfigError: `n_action_steps` is below 1, or more than a chunk has.
        ServerError: the server does not answer or refuses access, or a setting is for another kind of server.
        FeatureError: the server does not send a schema.
    """
    if n_action_steps is not None and n_action_steps < 1:
        raise ConfigError(
            f"--policy.n_action_steps={n_action_steps}: at least one action of a chunk is executed."
        )
    client: RemotePolicy | OpenpiPolicy
    with translate_errors():
        if not url.startswith(SCHEME):
            if openpi_schema is not None:
                raise ClientError(f"{url} is no openpi server's address, and tells its schema itself.")
            client = RemotePolicy(url, images=images, **settings)
        else:
            if images != "raw":
                raise ClientError("openpi's servers take raw pictures only: leave --policy.images out.")
            schema, keys = (None, {}) if openpi_schema is None else read_openpi_schema(openpi_schema)
            client = OpenpiPolicy(url, schema=schema, keys=keys, **settings)
    if n_action_steps is not None and n_action_steps > client.schema.chunk_size:
        client.close()
        raise ConfigError(
            f"--policy.n_action_steps={n_action_steps}: a chunk of this policy has {client.schema.chunk_size} actions."
        )
    return ServedPolicy(client, n_action_steps)

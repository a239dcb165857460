"""A policy on a server in the place of one that was loaded: evaluation and recording notice no difference.

The processors run on the server, so those that come with it change nothing; what it gives is in the robot's units already.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smolact.errors import FeatureError, ServerError
from smolact.policies.common.chunking import ActsInChunks
from smolact.policies.configuration import PolicyConfig
from smolact.types import ACTION, TASK, EmptyInstruction, FeatureType, PolicyFeature, is_image_key
from smolact_client import (
    ChunkPolicy,
    ClientError,
    Leftover,
    ObservationError,
    RemotePolicy,
    Schema,
    SchemaMismatchError,
)
from smolact_client.openpi import SCHEME, OpenpiPolicy, read_openpi_schema

T = TypeVar("T")


@dataclass
class RemoteConfig(PolicyConfig):
    """What is known here of a policy that is elsewhere."""

    type: ClassVar[str] = "remote"
    chunk_size: int = 1
    n_action_steps: int = 1
    empty_cameras: int = 0
    served: str = field(default="", metadata={"help": "its type there"})


class LoadedRemote(NamedTuple):
    """What `smolact.load_policy` gives of a policy that is here."""

    policy: RemoteChunks
    preprocess: Identity
    postprocess: Identity


class Identity:
    """A processor that does nothing."""

    def __call__(self, data: T) -> T:
        """`data`."""
        return data


class RemoteChunks(ActsInChunks):
    """A policy on a server, under the face that policies have here.

    Its batches are raw ones, its actions in the robot's units. Each row of a batch is a client of its own, so that a server
    answers a batch together, as it would have been here.

    Args:
        url: the server's address; `openpi+ws://…` for an openpi server.
        n_action_steps: how many actions of a chunk are executed; as the server says when not given.
        settings: as `connect` takes them (`token`, `images`, `timeout`, `ca_file`, `openpi_schema`).

    Raises:
        ServerError: it does not answer, or lets nobody in.
    """

    def __init__(self, url: str, *, n_action_steps: int | None = None, **settings: Any) -> None:
        self._url, self._settings = url, settings
        self._clients: list[RemotePolicy | OpenpiPolicy] = []
        self.schema = self._client(0).schema
        self.config = _config_of(self.schema, n_action_steps)
        self.reset()

    @torch.no_grad()
    def predict_action_chunk(self, batch: Mapping[str, Any], noise: Tensor | None = None) -> Tensor:
        """The next actions (B, chunk, A), in the robot's units. What the server draws follows from torch's generator here.

        Raises:
            FeatureError: the batch is not what the policy looks at; or `noise` is given, which stays on the server.
            ServerError: there is no answer.
        """
        if noise is not None:
            raise FeatureError("A policy on a server draws its own noise: leave it out.")
        tasks = batch.get(TASK)
        if not isinstance(tasks, (list, tuple)) or not tasks:
            raise FeatureError(f"The batch needs '{TASK}', a list of one instruction for each row.")
        rows = [
            {key: _raw(key, value[row]) for key, value in batch.items() if isinstance(value, Tensor)}
            for row in range(len(tasks))
        ]
        seeds = torch.randint(2**62, (len(rows),)).tolist()
        clients = [self._client(row) for row in range(len(rows))]

        def ask(row: int) -> NDArray[np.float32]:
            task = None if isinstance(tasks[row], EmptyInstruction) and not tasks[row].strip() else tasks[row]
            return clients[row].predict_action_chunk(rows[row], task, seed=seeds[row])

        with translate_errors(), ThreadPoolExecutor(len(rows)) as threads:
            try:
                chunks = list(threads.map(ask, range(len(rows))))
            except (
                BaseException
            ):  # Ctrl-C, or one of them failed: nobody is interested in the others any more
                for client in clients:
                    client.reset()
                raise
        return torch.from_numpy(np.stack(chunks))

    def forward(
        self,
        batch: Mapping[str, Any],
        noise: Tensor | None = None,
        time: Tensor | None = None,
        reduction: str = "mean",
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """There is no loss of a policy that is elsewhere.

        Raises:
            FeatureError: always.
        """
        raise FeatureError(
            "A policy on a server does not train, and tells no loss. Load its checkpoint here."
        )

    def reset(self) -> None:
        """An episode begins."""
        super().reset()
        for client in self._clients:
            client.reset()

    def close(self) -> None:
        """Hang up, with all of them at once."""
        with ThreadPoolExecutor(max(1, len(self._clients))) as threads:
            list(threads.map(lambda client: client.close(), self._clients))

    def one(self) -> OnePolicy:
        """The same policy, asked one question at a time with a raw observation."""
        client = self._client(0)
        steps = self.config.n_action_steps  # type: ignore[attr-defined]
        return OnePolicy(client, replace(client.schema, n_action_steps=steps))

    def _client(self, row: int) -> RemotePolicy | OpenpiPolicy:
        while len(self._clients) <= row:
            with translate_errors():
                client = connect(self._url, **self._settings)
            client.patience.is_silent = bool(self._clients)  # the first one speaks for all
            self._clients.append(client)
        return self._clients[row]


class OnePolicy:
    """A policy here or on a server: one raw observation in, one chunk in the robot's units out; errors are this package's."""

    def __init__(self, client: ChunkPolicy, schema: Schema) -> None:
        self._client, self.schema = client, schema

    def predict_action_chunk(
        self, observation: Mapping[str, Any], task: str | None, *, leftover: Leftover | None = None
    ) -> NDArray[np.float32]:
        """The next actions (T, A); they go on from `leftover`.

        Raises:
            FeatureError, ServerError: it can't look at this, or there is no answer.
        """
        with translate_errors():
            return self._client.predict_action_chunk(observation, task, leftover=leftover)

    def reset(self) -> None:
        """An episode begins. A question that waits for a server in another thread is dropped."""
        with translate_errors():
            self._client.reset()

    def close(self) -> None:
        """Let go of it. A question that waits for a server in another thread fails at once."""
        self._client.close()


def connect(
    url: str, *, images: Literal["raw", "jpeg"] = "raw", openpi_schema: Path | None = None, **settings: Any
) -> RemotePolicy | OpenpiPolicy:
    """A client of the server at `url`, of smolact's or of openpi's kind.

    Args:
        url: `ws://…`, `wss://…`, or either behind `openpi+`.
        images: how pictures are sent.
        openpi_schema: a file that says what an openpi server's policy looks at, if the server does not.
        settings: as either client takes them.

    Raises:
        ClientError: nobody answers, or lets nobody in, or a setting does not belong to this kind of server.
    """
    if not url.startswith(SCHEME):
        if openpi_schema is not None:
            raise ClientError(f"{url} is no openpi server's address, and tells its schema itself.")
        return RemotePolicy(url, images=images, **settings)
    if images != "raw":
        raise ClientError("openpi's servers take raw pictures only: leave --policy.images out.")
    schema, keys = (None, {}) if openpi_schema is None else read_openpi_schema(openpi_schema)
    return OpenpiPolicy(url, schema=schema, keys=keys, **settings)


def load_remote(url: str, *, n_action_steps: int | None = None, **settings: Any) -> LoadedRemote:
    """A policy on a server, as `smolact.load_policy` would give it: policy, preprocessor, postprocessor.

    Raises:
        ServerError: it does not answer, or lets nobody in.
    """
    return LoadedRemote(RemoteChunks(url, n_action_steps=n_action_steps, **settings), Identity(), Identity())


def _config_of(schema: Schema, n_action_steps: int | None) -> RemoteConfig:
    inputs = {
        **{key: PolicyFeature(FeatureType.VISUAL, (3, *size)) for key, size in schema.cameras.items()},
        **{key: PolicyFeature(FeatureType.STATE, (size,)) for key, size in schema.vectors.items()},
    }
    return RemoteConfig(
        input_features=inputs,
        output_features={ACTION: PolicyFeature(FeatureType.ACTION, (schema.action,))},
        chunk_size=schema.chunk_size,
        n_action_steps=schema.n_action_steps if n_action_steps is None else n_action_steps,
        empty_cameras=schema.absent_cameras,
        served=schema.policy,
    )


def _raw(key: str, value: Tensor) -> NDArray[Any]:
    """One row as a robot would give it: pictures (H, W, 3) uint8, vectors float32."""
    if not is_image_key(key):
        return value.float().cpu().numpy()
    if value.is_floating_point():
        value = (value * 255).round().clamp(0, 255).to(torch.uint8)
    return value.permute(1, 2, 0).contiguous().cpu().numpy()


@contextlib.contextmanager
def translate_errors() -> Iterator[None]:
    """The client's errors as errors of this package."""
    try:
        yield
    except (ObservationError, SchemaMismatchError) as error:
        raise FeatureError(str(error)) from error
    except ClientError as error:
        raise ServerError(str(error)) from error

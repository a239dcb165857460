"""`smolact serve`: serve a policy to robots over the network."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from smolact.cli.command import command
from smolact.cli.main import DONE, aligned
from smolact.cli.servers import CHECK_NAMES, RENAME_MAP, ChosenPolicy, announce_policy, is_server, load_chosen
from smolact.errors import ConfigError
from smolact.settings import at_least, open_section, setting
from smolact.training.sections import policy_fields

if TYPE_CHECKING:
    from smolact.runtime.local import LocalPolicy
    from smolact.serving.auth import Auth
    from smolact_client import Schema

logger = logging.getLogger(__name__)

USAGE = (
    "smolact serve --policy.path=CHECKPOINT [--port=8765]\n"
    "       smolact serve --policy.path=CHECKPOINT --host=0.0.0.0 --token-file=FILE --tls-cert=FILE --tls-key=FILE"
)


@dataclass
class ServedPolicy(ChosenPolicy):
    """The policy to serve; further settings override its configuration."""

    path: str | None = setting(None, "The checkpoint: a folder or a Hub id. Clients can't choose another.")
    settings: dict[str, Any] = open_section(policy_fields)


@dataclass
class ServeConfig:
    """Settings of `smolact serve`."""

    policy: ServedPolicy = field(default_factory=ServedPolicy)
    rename_map: dict[str, str] = setting(dict, RENAME_MAP)
    check_names: bool = setting(True, CHECK_NAMES)
    engine: bool = setting(
        True,
        "Answer with the policy's engine: the same actions, sooner. --engine=false takes the policy itself.",
    )
    host: str = setting(
        "127.0.0.1", "The address to listen at. Any other than this machine's own needs a token and TLS."
    )
    port: int = setting(8765, "The port; 0 for any that is free.")
    protocol: Literal["smolact", "openpi"] = setting(
        "smolact", "Whose clients can ask: smolact's, or openpi's (`WebsocketClientPolicy`)."
    )
    token_file: Path | None = setting(
        None, "A file with the token that clients must bring.", aliases=("token-file",)
    )
    tls_cert: Path | None = setting(None, "The server's certificate (PEM).", aliases=("tls-cert",))
    tls_key: Path | None = setting(
        None, "Its key (PEM), unless --tls-cert holds it, too.", aliases=("tls-key",)
    )
    insecure: bool = setting(False, "Listen beyond this machine without token or TLS, knowingly.")
    max_clients: int = setting(32, "Sessions at a time.", aliases=("max-clients",))
    max_batch: int = setting(8, "Questions that are answered together.", aliases=("max-batch",))


@command(ServeConfig, USAGE)
def run(config: ServeConfig) -> int:
    """Serve until Ctrl-C or SIGTERM."""
    if config.policy.path is None:
        raise ConfigError("`smolact serve` needs a policy: --policy.path=CHECKPOINT.")
    for name in ("max_clients", "max_batch"):
        at_least(name, getattr(config, name), 1)
    access = _access(config)
    policy = _load(config, str(config.policy.path))
    asyncio.run(_serve(config, access, policy))
    sys.stdout.write("Stopped.\n")
    return DONE


async def _serve(config: ServeConfig, access: Auth, policy: LocalPolicy) -> None:
    from smolact.serving.openpi import OpenpiServer
    from smolact.serving.server import PolicyServer

    def on_started(url: str) -> None:
        sys.stdout.write(announcement(url, access, policy.schema))
        sys.stdout.flush()

    server_type = OpenpiServer if config.protocol == "openpi" else PolicyServer
    server = server_type(policy, access, max_clients=config.max_clients, max_batch=config.max_batch)
    serving = asyncio.ensure_future(server.run(on_started))
    loop = asyncio.get_running_loop()

    def stop() -> None:
        sys.stderr.write("Stopping: what is being computed is finished, nothing else is answered.\n")
        serving.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C raises KeyboardInterrupt there
            loop.add_signal_handler(number, stop)
    with contextlib.suppress(asyncio.CancelledError):
        await serving


def announcement(url: str, access: Auth, schema: Schema) -> str:
    """Return the operator's message at start: address, access, inputs and outputs."""
    audience = "whoever has the token" if access.token else "this machine" if access.is_local else "anybody"
    lines = [f"Serving {schema.policy} at {url}, to {audience}. Ctrl-C stops it."]
    rows = [(key, f"{height}×{width}") for key, (height, width) in schema.cameras.items()]
    rows += [(key, _numbers(size, schema.names.get(key))) for key, size in schema.vectors.items()]
    rows.append(("action", _numbers(schema.action, schema.names.get("action"))))
    lines += [f"  {line}" for line in aligned(rows)]
    lines.append(
        f"  An answer has {schema.chunk_size} actions, of which {schema.n_action_steps} are meant to be executed."
    )
    if schema.action_range is not None:
        ranges = ", ".join(f"{low:.4g} to {high:.4g}" for low, high in schema.action_range)
        lines.append(f"  Units are those of its training, where actions went from {ranges}.")
    if not access.is_local and (access.token is None or access.tls is None):
        lines.append("  INSECURE: whoever reaches this port can ask, or listen.")
    return "\n".join(lines) + "\n"


def _numbers(size: int, names: Sequence[str] | None) -> str:
    return f"{size} numbers" + (f": {', '.join(names)}" if names else "")


def _access(config: ServeConfig) -> Auth:
    from smolact.serving.auth import Auth, read_certificate, read_token

    if config.tls_cert is None and config.tls_key is not None:
        raise ConfigError("--tls-key belongs to a certificate: give --tls-cert, too.")
    return Auth(
        host=config.host,
        port=config.port,
        token=None if config.token_file is None else read_token(config.token_file),
        tls=None if config.tls_cert is None else read_certificate(config.tls_cert, config.tls_key),
        insecure=config.insecure,
    )


def _load(config: ServeConfig, path: str) -> LocalPolicy:
    if is_server(path):
        raise ConfigError(
            f"--policy.path={path} is a server already: serve a checkpoint, a folder or a Hub id."
        )
    announce_policy(path)
    from smolact.runtime.local import LocalPolicy

    policy = load_chosen(
        config.policy,
        engine={} if config.engine else None,
        rename_map=config.rename_map,
        any_names=not config.check_names,
    )
    assert isinstance(policy, LocalPolicy)  # servers are refused above
    return policy

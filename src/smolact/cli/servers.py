"""The policy that a command runs: a checkpoint, or a policy on a server (`--policy.path=ws://…`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from smolact.cli.progress import announce
from smolact.errors import ConfigError
from smolact.settings import open_section, setting
from smolact.training.sections import policy_fields

if TYPE_CHECKING:
    from smolact.runtime.local import LocalPolicy
    from smolact.runtime.remote import ServedPolicy

SCHEMES = ("ws://", "wss://", "openpi+ws://", "openpi+wss://")
HELP = (
    "A folder, a Hub id, or the address of a server: ws://HOST:PORT, wss://HOST:PORT (see `smolact serve`), or openpi+ws://… for "
    "one of openpi's."
)


INT8 = "Keep the weights of the policy's engine in 8 bits, on a CPU: sooner, in less memory, and chunks a few hundredths off."
FP8 = "Keep the weights of the expert in the policy's engine in float8, on a GPU of compute capability 8.9 or more; on a CPU to see what it costs."


@dataclass
class RemoteSettings:
    """Settings under `--policy.…` for a policy on a server."""

    token_file: Path | None = setting(None, "A file with the server's token.", aliases=("token-file",))
    ca_file: Path | None = setting(
        None, "Certificates to trust in place of the system's, for a server that signed its own."
    )
    images: Literal["raw", "jpeg"] = setting("raw", "How pictures are sent; jpeg takes a tenth of the bytes.")
    timeout: float = setting(30.0, "Seconds to wait for an answer.")
    n_action_steps: int | None = setting(
        None, "How many actions of a chunk are executed; as the server says when null."
    )
    openpi_schema: Path | None = setting(
        None, "For an openpi server, which does not say what its policy looks at: a JSON file that does."
    )


@dataclass
class AnyPolicy:
    """A checkpoint, or a policy type without weights; further settings override the configuration."""

    path: str | None = setting(None, "A checkpoint: a folder or a Hub id.")
    type: str | None = setting(None, "A policy type, such as smolvla.")
    settings: dict[str, Any] = open_section(policy_fields)


@dataclass
class CheckpointPolicy:
    """A checkpoint, and the statistics to normalize with; further settings override its configuration."""

    path: str | None = setting(None, "A checkpoint: a folder or a Hub id.")
    stats_key: str | None = setting(
        None, "Which dataset's statistics to normalize with, where a checkpoint holds those of several."
    )
    stats: str | None = setting(
        None, "A dataset (folder or Hub id) whose statistics are taken for what the checkpoint lacks."
    )
    settings: dict[str, Any] = open_section(policy_fields)


@dataclass
class ChosenPolicy(CheckpointPolicy):
    """The policy that a command runs: a checkpoint, or one on a server."""

    path: str | None = setting(None, HELP)
    int8: bool = setting(False, INT8)
    fp8: bool = setting(False, FP8)
    settings: dict[str, Any] = open_section(lambda section: policy_or_server_fields(section))


RENAME_MAP = "Names of the robot, the dataset or the environment to the policy's, as {old: new}; the checkpoint's own map when empty."
CHECK_NAMES = "Refuse a robot whose joints have other names than those of the policy's training; false: their number must fit."


def load_chosen(
    policy: ChosenPolicy,
    *,
    path: str | None = None,
    device: str | None = None,
    engine: Mapping[str, Any] | None = None,
    rename_map: Mapping[str, str] | None = None,
    any_names: bool = False,
    threads: bool = False,
) -> LocalPolicy | ServedPolicy:
    """Load the policy that the flags select; the caller closes it.

    Args:
        path: another checkpoint to load with the same flags.
        device: default of --policy.device.
        engine: settings of the engine, besides those of the flags; None for the policy without its engine.
        any_names: whether the robot's joint names may differ from those of the policy's training.
        threads: use PyTorch's threads for a small policy, too, which predicts in one thread otherwise.

    Raises:
        ConfigError: as in `engine_settings`.
        SmolactError: errors of loading.
    """
    from smolact.policies.factory import is_small, load_policy
    from smolact.runtime.local import LocalPolicy

    path, settings = str(path or policy.path), dict(policy.settings)
    quantized = engine_settings(path, policy, rename_map, engine=engine is not None)
    if is_server(path):
        return load_from_server(path, settings)
    chosen: dict[str, Any] = {
        "device": settings.pop("device", None) or device,
        "stats_key": policy.stats_key,
        "stats": policy.stats,
        "rename_map": rename_map or None,
    }
    loaded = load_policy(
        path, **chosen, engine=False if engine is None else {**engine, **quantized}, **settings
    )
    return LocalPolicy(*loaded, any_names=any_names, in_one_thread=not threads and is_small(path))


def _server_advice(path: str, flag: str) -> str:
    """Return advice for a flag that does not apply to a policy on a server."""
    if not path.startswith("openpi+"):
        return "Give it to `smolact serve` there."
    if flag == "rename_map":
        return "Leave it out, and set the names under 'keys' in the file of --policy.openpi_schema."
    return "Leave it out: weights and statistics of an openpi server were settled where it was started."


def is_server(name: str | None) -> bool:
    """Whether a policy's name is a server's address."""
    return name is not None and name.startswith(SCHEMES)


def announce_policy(path: str | None) -> None:
    """Announce the policy before the imports for loading it, which may take seconds."""
    announce(f"{'Connecting to' if is_server(path) else 'Loading'} {path} …")


def engine_settings(
    path: str, policy: ChosenPolicy, rename_map: Mapping[str, str] | None, *, engine: bool = True
) -> dict[str, Any]:
    """Return the engine's settings from the flags (--policy.int8, --policy.fp8) for `load_policy`.

    Raises:
        ConfigError: a flag does not apply to a policy on a server, or int8 and fp8 are both set, or set without an engine.
    """
    requested = [name for name in ("int8", "fp8") if getattr(policy, name)]
    for name in requested:
        if not engine:
            raise ConfigError(f"--policy.{name}=true is the engine's: leave out --engine=false.")
    flags = {
        **{f"policy.{name}": True for name in requested},
        "policy.stats_key": policy.stats_key,
        "policy.stats": policy.stats,
        "rename_map": rename_map,
    }
    for name, value in flags.items():
        if value and is_server(path):
            raise ConfigError(
                f"--{name} can't be used with {path}: the server has the weights and the processors. {_server_advice(path, name)}"
            )
    if len(requested) > 1:
        raise ConfigError("--policy.int8 and --policy.fp8 round the same weights: leave one of them out.")
    return dict.fromkeys(requested, True)


def policy_or_server_fields(section: Mapping[str, Any]) -> type | None:
    """Return the class of further `--policy.…` settings: the checkpoint's configuration or a server connection."""
    return RemoteSettings if is_server(section.get("path")) else policy_fields(section)


def load_from_server(url: str, settings: Mapping[str, Any]) -> ServedPolicy:
    """Connect to the policy on a server.

    Raises:
        ServerError, NotFoundError, ConfigError: the server does not answer or refuses access, or the token file is invalid.
    """
    from smolact.runtime.remote import connect
    from smolact.serving.auth import read_token

    known = {field.name for field in dataclasses.fields(RemoteSettings)}
    connection = RemoteSettings(**{key: value for key, value in settings.items() if key in known})
    options = vars(connection)
    token_file = options.pop("token_file")
    return connect(url, token=None if token_file is None else read_token(token_file), **options)

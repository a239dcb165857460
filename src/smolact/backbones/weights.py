"""Loading of weights from safetensors files, sharded or not, into a module: all of them, of the right shape, or an error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from smolact.errors import CheckpointError, NotFoundError, WeightsError, list_siblings
from smolact.files import read_json_object
from smolact.openable import check_own

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder: `model.safetensors`, or the shards that its index names.

    Raises:
        NotFoundError: there are none.
        CheckpointError: the index is damaged, or names a file outside the folder or one that is missing.
    """
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    index = folder / INDEX_FILE
    if not index.is_file():
        pickled = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
        hint = (
            f" {pickled[0].name} is a pickle, which is never loaded: convert it to safetensors."
            if pickled
            else ""
        )
        if any(folder.glob("pytorch_model_fsdp_*")):
            hint = (
                " It holds the shards of a training on several GPUs, which are read with pickles: let LeRobot merge them "
                "(lerobot-convert-dcp --checkpoint_dir=CHECKPOINT), or train with --checkpoint_format=safetensors_dcp there."
            )
        raise NotFoundError(
            f"{folder} has no weights: expected {WEIGHTS_FILE} or {INDEX_FILE}.{hint} {list_siblings(folder / '_')}"
        )
    try:
        names = sorted(set(read_json_object(index, "Fetch it again.")["weight_map"].values()))
        paths = [folder / str(name) for name in names]
    except (KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} is damaged ({error}). Fetch it again.") from error
    for path in paths:
        if path.parent != folder or not path.is_file():
            raise CheckpointError(
                f"{index} names the shard '{path.name}', which is not in {folder}. Fetch it again."
            )
    return paths


def read_tensors(
    files: Iterable[Path], wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, Tensor]:
    """Read every wanted tensor of the files, memory-mapped if the platform supports it.

    Raises:
        CheckpointError: a file is damaged or truncated.
    """
    tensors: dict[str, Tensor] = {}
    for path in files:
        try:
            check_own(path)
            with safe_open(path, framework="pt") as file:
                tensors.update({name: file.get_tensor(name) for name in file.keys() if wanted(name)})  # noqa: SIM118
        except (SafetensorError, OSError, RuntimeError) as error:
            raise CheckpointError(
                f"{path} is damaged ({error}). Fetch or copy it again; a checkpoint folder holds others under "
                "checkpoints/ beside it."
            ) from error
    return tensors


class _SkipInitialization(TorchFunctionMode):
    """Skips the functions of `torch.nn.init`, which on the meta device only import a compiler (two seconds)."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Build modules without values (on the meta device) within the block; `load_weights` sets them."""
    with torch.device("meta"), _SkipInitialization():
        yield


def load_weights(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    source: str | Path,
    dtype: torch.dtype | None = torch.float32,
) -> None:
    """Load exactly these tensors into `module` (which may be on the meta device); none may be missing, unexpected or misshapen.

    Args:
        module: its parameters are replaced; their `requires_grad` is kept.
        tensors: by the names of `module.state_dict()`.
        source: their source, for the message.
        dtype: convert to it; None keeps each tensor's own.

    Raises:
        WeightsError: a table of what is missing, unexpected or of another shape.
    """
    aliases = _aliases(module)
    tensors = {**{name: tensors[first] for name, first in aliases.items() if first in tensors}, **tensors}
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    faults = {
        "missing": [f"{name} {expected[name]}" for name in expected if name not in found],
        "unexpected": [f"{name} {found[name]}" for name in found if name not in expected],
        "of another shape": [
            f"{name}: expected {expected[name]}, found {found[name]}"
            for name in expected
            if name in found and expected[name] != found[name]
        ],
    }
    if any(faults.values()):
        raise WeightsError(f"The weights in {source} do not fit this configuration.\n" + _table(faults))
    converted = {
        name: tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)
        for name, tensor in tensors.items()
    }
    module.load_state_dict(converted, strict=True, assign=True)
    for name, first in aliases.items():
        owner, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(owner), attribute, module.get_parameter(first))


def _aliases(module: nn.Module) -> dict[str, str]:
    """Return the names of parameters that are tied to another one (an output layer), with the first name of that one."""
    first: dict[nn.Parameter, str] = {}
    named = module.named_parameters(remove_duplicate=False)
    return {name: first[parameter] for name, parameter in named if first.setdefault(parameter, name) != name}


def _table(faults: Mapping[str, list[str]], most: int = 8) -> str:
    lines = []
    for title, names in faults.items():
        if names:
            lines.append(f"  {title} ({len(names)}):")
            lines += [f"    {name}" for name in names[:most]]
            lines += [f"    … and {len(names) - most} more"] if len(names) > most else []
    return "\n".join([*lines, "Check --policy.FIELD settings against the checkpoint's config.json."])

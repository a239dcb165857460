"""The earlier import paths of the plugins, which IL-Studio checkouts of an earlier installation still contain.

`smolact.integrations.hf_trainer` and `hf_data` are in `smolact_transformers`, `il_studio` is `smolact_il_studio`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

from smolact.errors import missing_plugin

_MOVED = {
    f"{__name__}.hf_data": ("smolact_transformers.data", "hf"),
    f"{__name__}.hf_trainer": ("smolact_transformers.trainer", "hf"),
    f"{__name__}.il_studio": ("smolact_il_studio", "il-studio"),
}


class _Alias(MetaPathFinder, Loader):
    """Imports a plugin's module, or one in a plugin's package, by its earlier path."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> ModuleSpec | None:
        is_moved = any(f"{name}.".startswith(f"{old}.") for old in _MOVED)
        return ModuleSpec(name, self) if is_moved else None

    def exec_module(self, module: ModuleType) -> None:
        old = next(old for old in _MOVED if module.__name__.startswith(old))
        new, extra = _MOVED[old]
        if find_spec(new.partition(".")[0]) is None:
            raise missing_plugin(module.__name__, extra)
        sys.modules[module.__name__] = importlib.import_module(module.__name__.replace(old, new))


sys.meta_path.insert(0, _Alias())  # first, since the path of a plugin's package has its modules, too

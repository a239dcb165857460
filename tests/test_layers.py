"""The layers: imports go down, never up or in a circle; `--help` costs nothing; public names exist."""

from __future__ import annotations

import ast
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import smolact
import smolact_client

SOURCE = Path(smolact.__file__).parent
CLIENT = Path(smolact_client.__file__).parent
PLUGINS = sorted((Path(__file__).parents[1] / "plugins").glob("*/src/*"))
LAYERS = {
    **dict.fromkeys(
        (
            *("types", "cards", "errors", "durable", "files", "hub", "lock", "machine", "memory", "openable"),
            *("decoding", "flags", "pages", "parsing", "registry", "settings", "unsupported", "uploads"),
        ),
        0,
    ),
    **dict.fromkeys(("datasets", "processors", "backbones", "envs", "robots"), 1),
    "policies": 2,
    "runtime": 3,
    **dict.fromkeys(("training", "evaluation", "recording", "serving"), 4),
    **dict.fromkeys(("cli", "integrations", "__main__"), 5),
}
SAME_LAYER = {
    ("training", "evaluation"),
    ("__main__", "cli"),
}
"""Packages of one layer of which the first may import the second. Layer 0 builds on itself, in one direction."""


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] in {"smolact", *(path.name for path in PLUGINS)}}


MODULES = [path for path in sorted(SOURCE.rglob("*.py")) if path != SOURCE / "__init__.py"]
PLUGIN_MODULES = [path for plugin in PLUGINS for path in sorted(plugin.rglob("*.py"))]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_down(path: Path) -> None:
    package = path.relative_to(SOURCE).with_suffix("").parts[0]
    assert package in LAYERS, f"{path.name} is in no layer: give it one here and in docs/architecture.md"
    for name in imports(path):
        assert name.startswith("smolact."), f"{path.relative_to(SOURCE)} imports {name}, which is a plugin's"
        other = name.split(".")[1]
        if other == package or other not in LAYERS:  # its own package, or a public name of the package
            continue
        allowed = LAYERS[other] < LAYERS[package] or (package, other) in SAME_LAYER or LAYERS[package] == 0
        assert allowed, f"{path.relative_to(SOURCE)} imports {name}, which is not below it"


def test_no_module_needs_itself() -> None:
    graph = {
        ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__"): imports(
            path
        )
        for package in (SOURCE, *PLUGINS)
        for path in (*MODULES, *PLUGIN_MODULES)
        if package in path.parents
    }
    edges = {
        module: {name if name in graph else name.rpartition(".")[0] for name in names} & graph.keys()
        for module, names in graph.items()
    }
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail[trail.index(module) :], module))
        if module not in done:
            for other in edges[module]:
                visit(other, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_no_source_file_is_too_long() -> None:
    long = {
        f"{path.parent.name}/{path.name}": count
        for path in (*MODULES, *PLUGIN_MODULES)
        if (count := len(path.read_text().splitlines())) > 500
    }
    assert not long, f"look for the second thing that each does: {long}"


def test_the_client_stands_alone() -> None:
    """A robot's computer has neither torch nor smolact; and the command's help does not load the client."""
    code = "from smolact_client import *; import sys; print(*{name.split('.')[0] for name in sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "websockets" in found.stdout.split()
    assert not {"torch", "smolact", "pyarrow", "transformers", "rich"} & set(found.stdout.split())
    for path in CLIENT.glob("*.py"):
        assert not imports(path), path


def test_a_policy_needs_no_client() -> None:
    code = "import smolact, sys; smolact.SmolVLAPolicy; print(*{name.split('.')[0] for name in sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"websockets", "av", "gymnasium", "accelerate", "draccus"} & set(found.stdout.split())


def test_modules_of_the_client_are_there_without_an_import_of_their_own() -> None:
    code = "import smolact_client; print(smolact_client.errors.ClientError.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "ClientError", done.stderr


@pytest.mark.parametrize("package", [smolact, smolact_client])
def test_public_names_are_sorted_and_lead_somewhere(package: Any) -> None:
    assert package.__all__ == sorted(package.__all__)
    for name in package.__all__:
        assert getattr(package, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        package.nothing  # noqa: B018


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import smolact, sys; print(*{name.split('.')[0] for name in sys.modules})"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "numpy", "pyarrow", "av", "transformers", "gymnasium", "accelerate", "rich"} & set(
        found
    )


def test_nothing_that_came_in_as_data_is_run() -> None:
    """No pickle, no `eval`, no remote code anywhere in the source."""
    forbidden_calls = {"eval", "exec"}
    for path in (*MODULES, *PLUGIN_MODULES, *sorted(CLIENT.glob("*.py"))):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in forbidden_calls, f"{path}:{node.lineno}"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
                assert (owner, node.func.attr) not in {("torch", "load"), ("np", "load"), ("yaml", "load")}, (
                    f"{path}:{node.lineno}"
                )
            if isinstance(node, ast.Import):
                assert not {"pickle", "dill", "cloudpickle"} & {alias.name for alias in node.names}, path
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                raise AssertionError(f"{path}:{node.lineno}")


def test_the_picture_of_the_layers_is_the_layers() -> None:
    found = runpy.run_path(str(SOURCE.parents[1] / "scripts" / "guide" / "layers.py"))
    path = SOURCE.parents[1] / "docs" / "images" / "layers.svg"
    assert path.read_text(encoding="utf-8") == found["picture"](), "run python scripts/guide/layers.py"

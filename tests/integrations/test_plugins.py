"""The plugins as smolact finds them: a command by its entry point, modules by their earlier paths, or what to install."""

from __future__ import annotations

import importlib
import subprocess
import sys
from importlib import metadata, util

import pytest

from smolact import integrations
from smolact.cli.main import main
from smolact.errors import MissingDependencyError

EARLIER = {
    "smolact.integrations.hf_data": "smolact_transformers.data",
    "smolact.integrations.hf_trainer": "smolact_transformers.trainer",
    "smolact.integrations.il_studio": "smolact_il_studio",
    "smolact.integrations.il_studio.fields": "smolact_il_studio.fields",
    "smolact.integrations.il_studio.modeling": "smolact_il_studio.modeling",
    "smolact.integrations.il_studio.policy_loader": "smolact_il_studio.policy_loader",
    "smolact.integrations.il_studio.smolvla": "smolact_il_studio.smolvla",
}


@pytest.mark.parametrize("name", EARLIER)
def test_an_earlier_path_is_the_plugins_module(name: str) -> None:
    pytest.importorskip("transformers")
    assert importlib.import_module(name) is importlib.import_module(EARLIER[name])
    assert sys.modules[EARLIER[name]].__name__ == EARLIER[name]


def test_an_earlier_path_can_be_imported_from_its_package() -> None:
    code = (
        "from smolact.integrations import hf_trainer\n"
        "import smolact.integrations.il_studio.policy_loader as loader\n"
        "import smolact.integrations\n"
        "print(hf_trainer.__name__, loader.__name__, smolact.integrations.il_studio.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        "smolact_transformers.trainer",
        "smolact_il_studio.policy_loader",
        "smolact_il_studio",
    ]


def test_a_module_that_no_plugin_has_is_not_found() -> None:
    for name in ("nothing", "il_studio.nothing"):
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(f"smolact.integrations.{name}")


@pytest.mark.parametrize("command", [["il-studio", "--help"], ["il-studio", "install", "ILStudio"]])
def test_a_command_whose_plugin_is_missing_says_what_to_install(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(metadata, "entry_points", lambda **which: metadata.EntryPoints(()))
    assert main(command) == 1
    shown = capsys.readouterr().err
    assert "pip install 'smolact[il-studio]'" in shown and "scripts/install il-studio" in shown
    assert main(["--help"]) == 0
    assert "  il-studio " in capsys.readouterr().out


@pytest.mark.parametrize(("module", "extra"), [("hf_trainer", "hf"), ("il_studio", "il-studio")])
def test_an_earlier_path_whose_plugin_is_missing_says_what_to_install(
    module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = util.find_spec
    monkeypatch.setattr(
        integrations, "find_spec", lambda name: None if name.startswith("smolact_") else really(name)
    )
    monkeypatch.delitem(sys.modules, f"smolact.integrations.{module}", raising=False)
    with pytest.raises(MissingDependencyError, match=rf"smolact\[{extra}\]"):
        importlib.import_module(f"smolact.integrations.{module}")


def test_the_overview_imports_no_plugin() -> None:
    code = "from smolact.cli.main import main; import sys; main(['--help']); print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "il-studio" in shown
    assert not {"smolact_il_studio", "smolact_transformers", "smolact.integrations"} & set(shown.split())

"""Putting smolact into a checkout of IL-Studio and taking it out again: nothing is lost, whatever happens in between."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from smolact import durable
from smolact.cli.main import main
from smolact.errors import ConfigError, NotFoundError, WriteError
from smolact_il_studio import installation
from smolact_il_studio.checkout import POLICIES, installed_files, policy_yaml
from smolact_il_studio.fields import OWN, THE_TASKS, setting_names
from smolact_il_studio.installation import STATE_FOLDER, install, uninstall

SHIPPED = {
    "train.py": "# theirs\n",
    "policy/policy_loader.py": "# theirs\n",
    "policy/act/__init__.py": "# theirs\n",
    "policy/smolvla/__init__.py": "from .modeling import SmolVLAPolicy\r\n",
    "policy/smolvla/modeling.py": "class SmolVLAPolicy: ...\n",
    "policy/smolvla/README.md": "theirs\n",
    "configs/loader.py": "# theirs\n",
    "configs/policy/smolvla.yaml": "name: smolvla\n",
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "ILStudio"
    for path, text in SHIPPED.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(text.encode())
    (folder / "policy/smolvla/modeling.py").chmod(0o755)
    return folder


def everything(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mode)
        for path in files
        if STATE_FOLDER not in path.parts
    }


def folders(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_dir()}


def test_what_was_installed_is_undone_to_the_byte(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, places = everything(checkout), folders(checkout)
    assert main(["il-studio", "install", str(checkout)]) == 0
    told = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert told.keys() == installed_files().keys()
    assert told["policy/smolvla/modeling.py"] == "replaced, the one that was there is kept"
    assert told["policy/smolandfast/modeling.py"] == "new"
    for path, text in installed_files().items():
        assert (checkout / path).read_text() == text
    (checkout / "policy/smolandfast/__pycache__").mkdir()
    (checkout / "policy/smolandfast/__pycache__/data_utils.pyc").touch()

    assert main(["il-studio", "uninstall", str(checkout)]) == 0
    assert everything(checkout) == before
    assert folders(checkout) == places


def test_installing_twice_is_installing_once(checkout: Path) -> None:
    before = everything(checkout)
    install(checkout, installed_files())
    assert {row.done for row in install(checkout, installed_files())} == {"as it was"}
    uninstall(checkout)
    assert everything(checkout) == before


def test_a_new_version_replaces_the_old_one_and_both_are_undone(checkout: Path) -> None:
    before = everything(checkout)
    install(checkout, {**installed_files(), "policy/smolvla/modeling.py": "# an older version\n"})
    install(checkout, installed_files())
    assert (checkout / "policy/smolvla/modeling.py").read_text() == installed_files()[
        "policy/smolvla/modeling.py"
    ]
    uninstall(checkout)
    assert everything(checkout) == before


@pytest.mark.parametrize("command", ["install", "uninstall"])
def test_what_a_user_changed_is_refused_and_with_force_kept_beside(checkout: Path, command: str) -> None:
    install(checkout, installed_files())
    path = checkout / "policy/smolvla/data_utils.py"
    path.write_text("# mine\n")
    change = {
        "install": lambda **how: install(checkout, installed_files(), **how),
        "uninstall": lambda **how: uninstall(checkout, **how),
    }
    with pytest.raises(ConfigError, match=r"policy/smolvla/data_utils\.py.*--force"):
        change[command]()
    assert path.read_text() == "# mine\n"
    rows = dict(change[command](force=True))
    assert rows["policy/smolvla/data_utils.py"].endswith("yours is kept: data_utils.py.yours")
    assert path.with_name("data_utils.py.yours").read_text() == "# mine\n"


def test_what_a_user_removed_is_written_again_or_left_alone(checkout: Path) -> None:
    before = everything(checkout)
    install(checkout, installed_files())
    (checkout / "policy/smolvla/modeling.py").unlink()
    assert dict(install(checkout, installed_files()))["policy/smolvla/modeling.py"] == "new"
    (checkout / "policy/smolandfast/modeling.py").unlink()
    uninstall(checkout)
    assert everything(checkout) == before


@pytest.mark.parametrize("broken", [0, 2, 5, 9, 14])
def test_a_disk_that_gives_out_loses_nothing(
    checkout: Path, broken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, writes = everything(checkout), 0
    really = os.replace

    def replace(*paths: os.PathLike[str]) -> None:
        nonlocal writes
        writes += 1
        if writes > broken:
            raise OSError(28, "No space left on device")
        really(*paths)

    monkeypatch.setattr(durable.os, "replace", replace)
    try:
        install(checkout, installed_files())
    except WriteError:
        writes = -1000
        rows = uninstall(checkout) if (checkout / STATE_FOLDER / "manifest.json").is_file() else []
        assert rows or everything(checkout) == before
    else:
        writes = -1000
        uninstall(checkout)
    assert everything(checkout) == before


def test_an_interrupted_installation_is_finished_by_the_next(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = everything(checkout)
    really, written = installation._write, []

    def write(path: Path, data: bytes) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        really(path, data)

    monkeypatch.setattr(installation, "_write", write)
    with pytest.raises(KeyboardInterrupt):
        install(checkout, installed_files())
    monkeypatch.undo()
    install(checkout, installed_files())
    assert all((checkout / path).read_text() == text for path, text in installed_files().items())
    uninstall(checkout)
    assert everything(checkout) == before


def test_a_folder_that_is_no_checkout_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["il-studio", "install", str(tmp_path)]) == 1
    assert "no checkout of IL-Studio" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_is_installed_there_is_nothing_to_undo(checkout: Path) -> None:
    with pytest.raises(NotFoundError, match="Nothing of smolact"):
        uninstall(checkout)


def test_links_are_not_written_through(checkout: Path, tmp_path: Path) -> None:
    (checkout / "configs/policy/smolvla.yaml").unlink()
    (tmp_path / "elsewhere.yaml").write_text("theirs\n")
    (checkout / "configs/policy/smolvla.yaml").symlink_to(tmp_path / "elsewhere.yaml")
    with pytest.raises(ConfigError, match="is a link"):
        install(checkout, installed_files())
    assert (tmp_path / "elsewhere.yaml").read_text() == "theirs\n"


@pytest.mark.parametrize("name", POLICIES)
def test_a_yaml_has_every_setting_that_has_an_effect_at_its_default(name: str) -> None:
    policy = POLICIES[name]
    raw = yaml.safe_load(policy_yaml(name))
    own = OWN.keys() - set(THE_TASKS)
    assert raw["model_args"].keys() == {
        *setting_names(policy.settings),
        *own,
        "action_normalize",
        "state_normalize",
    }
    plain = json.loads(json.dumps(policy.settings().to_dict()))
    for setting in set(setting_names(policy.settings)) & plain.keys() - own:
        assert raw["model_args"][setting] == plain[setting], setting
    assert not {"device", "optimizer_lr", "action_dim", "camera_names"} & raw["model_args"].keys()
    assert (raw["module_path"], raw["pretrained_config"]["is_pretrained"]) == (f"policy.{name}", False)


@pytest.mark.parametrize("name", POLICIES)
def test_files_of_an_earlier_installation_import_the_same_names(name: str) -> None:
    pytest.importorskip("transformers")
    text = installed_files()[f"policy/{name}/__init__.py"]
    ours, earlier = dict[str, Any](), dict[str, Any]()
    exec(text, ours)
    assert f"from smolact_il_studio.{name} import" in text
    exec(text.replace("smolact_il_studio", "smolact.integrations.il_studio"), earlier)
    assert ours["__all__"] == earlier["__all__"]
    assert all(ours[one] is earlier[one] for one in ours["__all__"])


def test_the_command_lists_its_parts_and_names_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["il-studio", "--help"]) == 0
    assert {"install", "uninstall", "export"} <= set(capsys.readouterr().out.split())
    assert main(["il-studio", "install"]) == 2
    assert "PATH" in capsys.readouterr().err
    assert main(["il-studio", "install", "--help"]) == 0
    assert "--force=false" in capsys.readouterr().out

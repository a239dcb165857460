"""What README and docs show is so: commands are understood, settings and names are there, links lead somewhere, Python runs."""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import inspect
import json
import pkgutil
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from numpy.typing import NDArray

import smolact.cli
import smolact_il_studio.cli
from smolact import parsing
from smolact.cli.main import COMMANDS, main
from smolact.datasets.reader import LeRobotDataset
from smolact.errors import ConfigError, MissingDependencyError, SmolactError
from smolact.flags import CONFIG_PATH
from smolact.registry import ENVIRONMENTS, POLICIES, ROBOTS, STEPS, TELEOPERATORS
from smolact.runtime.policy import Request
from smolact.serving.auth import Auth, read_certificate, read_token
from smolact.serving.background import serving
from smolact.training.config import TrainConfig
from smolact_client import Schema
from tests.documents import (
    PAGES,
    ROOT,
    anchors,
    blocks,
    commands,
    files,
    flags,
    headings,
    names,
    names_of_commands,
)
from tests.evaluation.test_suite import checkpoint
from tests.installed import install
from tests.policies.smolandfast.test_policy import policy_of
from tests.robots.conftest import STANDIN, forget_lerobot

by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))

OTHERS = {
    "env.episode_length": "LeRobot's, which the page says how to do without",
    "robot.left_arm_config.port": "of a LeRobot driver that the tests' stand-in does not have",
    "robot.right_arm_config.port": "the same",
    "robot.max_relative_target": "the same",
}
"""Settings that pages name and no command here knows."""

CONTEXTS = (
    (),
    ("--policy.type=smolvla",),
    ("--policy.type=smolandfast",),
    ("--policy.path=CHECKPOINT",),
    ("--policy.path=ws://server",),
    ("--env.type=tabletop",),
    ("--env.type=so101",),
    ("--env.type=metaworld",),
    ("--env.type=libero",),
    ("--robot.type=sim", "--teleop.type=expert"),
    ("--robot.type=so101_follower", "--teleop.type=so101_leader"),
)
"""What may have to stand beside a setting that depends on a type."""


class UnderstoodError(Exception):
    """No error: a command has read its words."""


@contextlib.contextmanager
def reading_only() -> Iterator[dict[type, None]]:
    """Every command stops when it has read its words. Gives the classes of settings that are asked for meanwhile."""
    asked: dict[type, None] = {}
    really = parsing.parse

    def parse(cls: type, argv: Sequence[str]) -> NoReturn:
        asked[cls] = None
        really(cls, argv)
        raise UnderstoodError

    forget_lerobot()
    with pytest.MonkeyPatch.context() as patch:
        packages = (smolact.cli, smolact_il_studio.cli)
        found = [
            one.name
            for package in packages
            for one in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
        ]
        # All before any is changed: one that is imported later would keep what is only lent here.
        for module in [smolact_il_studio.cli, *map(importlib.import_module, found)]:
            if module is not parsing and hasattr(module, "parse"):
                patch.setattr(module, "parse", parse)
            if hasattr(module, "read_settings"):
                patch.setattr(module, "read_settings", functools.partial(parse, TrainConfig))
            if hasattr(module, "needs_robot"):
                patch.setattr(module, "needs_robot", lambda argv, command: None)
        patch.setattr("smolact.training.sections.policy_type_at", lambda path: "smolvla")
        patch.syspath_prepend(str(STANDIN))
        patch.chdir(ROOT)
        yield asked
    forget_lerobot()


@pytest.fixture
def dry() -> Iterator[None]:
    with reading_only():
        yield


def understand(words: list[str]) -> None:
    """Let the real command read its words; what stands for a value of the reader's is left out where no text is wanted.

    Raises:
        ConfigError: it does not know them.
    """
    try:
        assert main(["--debug", *words]) in (0, 2)  # help; or the list of a group's commands
    except UnderstoodError:
        return
    except ConfigError as error:
        values = {word: word.partition("=")[2] for word in words if re.search("…|=[A-Z_]+$", word)}
        refused = [word for word, value in values.items() if word in str(error) or f"'{value}'" in str(error)]
        if not refused:
            raise
        understand([word for word in words if word not in refused])


@by_page
def test_commands_are_understood(page: Path, dry: None, capsys: pytest.CaptureFixture[str]) -> None:
    for words in commands(page):
        try:
            understand(words)
        except SmolactError as error:
            pytest.fail(f"{page.name}: smolact {' '.join(words)}\n{error}")
    there = set(command_names())
    for name in names_of_commands(page):
        assert any(one[: len(name)] == tuple(name) for one in there), f"{page.name}: smolact {' '.join(name)}"


@by_page
def test_pages_use_no_phrase_that_had_to_be_read_twice(page: Path) -> None:
    text = " ".join(page.read_text(encoding="utf-8").split())
    found = [
        phrase
        for phrase in ("but for", "for nothing.", "once they are kept", "are passed over")
        if phrase in text
    ]
    assert not found, page.name


@pytest.fixture(scope="module")
def settings() -> list[type]:
    """The classes of settings of all commands."""
    with reading_only() as asked:
        for name in command_names():
            with contextlib.suppress(UnderstoodError, ConfigError):
                main(["--debug", *name, "--policy.path=CHECKPOINT"])  # which `bench` asks for before it reads
    return list(asked)


def command_names() -> Iterator[tuple[str, ...]]:
    groups = {"dataset", "il-studio", "policy", "robot"}
    for name in COMMANDS:
        inner = COMMANDS[name].load().COMMANDS if name in groups else ()
        yield from ((name, one) for one in inner) if name in groups else [(name,)]


schema_of = functools.cache(parsing.ConfigSchema)


@functools.cache
def known(cls: type) -> frozenset[str]:
    """Every name that a command takes, whatever the types that it is given."""
    schema = schema_of(cls)
    found = {*schema.names(), *schema.sections, CONFIG_PATH}
    for field, value in (word[2:].split("=") for context in CONTEXTS for word in context):
        prefix, _, name = field.rpartition(".")
        if (fields := schema.open.get(f"{prefix}.")) and (inner := fields({name: value})):
            found |= {f"{prefix}.{one}" for one in parsing.ConfigSchema(inner).names()}
    return frozenset(found)


def takes(cls: type, words: Sequence[str]) -> bool:
    """Whether a command takes these settings with their values, beside one of the types."""
    for context in CONTEXTS:
        beside = [word for word in context if word[2:].split("=")[0] in schema_of(cls).flags]
        with contextlib.suppress(SmolactError):
            parsing.parse(cls, [*beside, *words])
            return True
    return False


def name_of(word: str) -> str:
    return word[2:].split("=")[0].rstrip(".…")


@pytest.fixture
def types_of_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for project in (ROOT / "examples").glob("*/pyproject.toml"):
        install(project.parent, tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")


@by_page
def test_settings_in_sentences_are_there(
    page: Path, settings: list[type], dry: None, types_of_examples: None
) -> None:
    """With the value that they are shown with; by name, where the value is the reader's."""
    for words in flags(page):
        ours = [word for word in words if name_of(word) not in OTHERS]
        able = [cls for cls in settings if known(cls) >= set(map(name_of, ours))]
        assert able, f"{page.name}: nothing knows {' '.join(ours)}"
        shown = [word for word in ours if "=" in word and not re.search("…|=[A-Z_]+$", word)]
        assert not shown or any(takes(cls, shown) for cls in able), (
            f"{page.name}: nothing takes {' '.join(ours)}"
        )


def absent(error: ImportError | MissingDependencyError) -> bool:
    """Whether a package of others is missing here, which is no fault of the page."""
    return isinstance(error, MissingDependencyError) or not (error.name or "smolact").startswith("smolact")


GROUPS = {each.group for each in (POLICIES, STEPS, ENVIRONMENTS, ROBOTS, TELEOPERATORS)}


@by_page
def test_names_of_ours_are_there(page: Path) -> None:
    for name in set(names(page)) - GROUPS:
        found: Any = importlib.import_module(name.split(".")[0])
        for part in name.split(".")[1:]:
            try:
                if not hasattr(found, part):
                    importlib.import_module(f"{found.__name__}.{part}")
            except (ImportError, MissingDependencyError) as error:
                assert absent(error), f"{page.name}: {name}: {error}"
                break
            found = getattr(found, part)


@by_page
def test_links_lead_somewhere(page: Path) -> None:
    assert not [str(path) for path in files(page) if not path.exists()]
    assert not [(other.name, anchor) for other, anchor in anchors(page) if anchor not in headings(other)]


# The pieces of Python, each in a world where what its page speaks of is there.

ELSEWHERE = {"docs/environments.md": "tests/envs/test_environments_page.py"}
"""Pages whose Python another test runs."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a demo has run and `me/push` was recorded, as far as files tell."""
    folder = tmp_path_factory.mktemp("home")
    dataset = folder / "outputs/demo/dataset"
    demos = ["dataset", "make-demos", "--env.type=tabletop", "--episodes=10", f"--output={dataset}"]
    assert main(demos) == 0
    checkpoint(folder / "outputs/demo/train/checkpoints/last/pretrained_model", 0, chunk_size=16)
    (folder / "outputs/datasets/me").mkdir(parents=True)
    (folder / "outputs/datasets/me/push").symlink_to(dataset)
    (folder / "FOLDER").symlink_to(dataset)
    return folder


def seen(home: Path) -> dict[str, Any]:
    """What docs/performance.md calls by name: a moment, and its parts."""
    moment = LeRobotDataset(home / "FOLDER")[0]
    parts = {
        name: {key: moment[key] for key in (key, "task")}
        for name, key in (("pictures_and_task", "observation.image"), ("state_and_task", "observation.state"))
    }
    return {"observation": moment, **parts}


def tokens(home: Path) -> dict[str, Any]:
    """What docs/smolandfast.md calls by name."""
    return {"CHECKPOINT": str(home / "FOLDER/../train/checkpoints/last"), "policy": policy_of()[0]}


def arm(home: Path) -> dict[str, Any]:
    """What docs/robots.md calls by name, and the calibration of its robot."""
    joint = {"id": 1, "drive_mode": 0, "homing_offset": 0, "range_min": 1024, "range_max": 3072}
    (home / "black.json").write_text(json.dumps({"shoulder_pan": joint, "gripper": joint}))
    return {"chunk": np.zeros((3, 2), np.float32)}


WORLDS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "README.md": lambda home: {},
    "docs/performance.md": seen,
    "docs/robots.md": arm,
    "docs/smolandfast.md": tokens,
    "docs/viz.md": lambda home: {},
}


def run_python(page: Path, world: dict[str, Any], replaced: Mapping[str, str]) -> None:
    """Run the page's pieces one after the other; what one defines, the next may use."""
    for text in blocks(page, "python"):
        for old, new in replaced.items():
            assert text.count(old) <= 1
            text = text.replace(old, new)
        exec(compile(text, str(page), "exec"), world)


def test_the_pages_whose_python_runs_have_some() -> None:
    shown = {page.relative_to(ROOT).as_posix() for page in PAGES if blocks(page, "python")}
    assert shown >= {*WORLDS, *ELSEWHERE, "docs/serving.md"}


@by_page
def test_python_imports_and_calls_what_is_there(page: Path) -> None:
    """All of it, also what can't run here: names that are imported, and what they are called with."""
    for text in blocks(page, "python"):
        tree, world = ast.parse(text, str(page)), dict[str, Any]()
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                try:
                    exec(compile(ast.Module([node], []), str(page), "exec"), world)
                except (ImportError, MissingDependencyError) as error:
                    assert absent(error), f"{page.name}: {ast.unparse(node)}: {error}"
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and (function := named(node.func, world)) is not None:
                keywords = {one.arg: None for one in node.keywords if one.arg}
                if len(keywords) == len(node.keywords) and ast.Starred not in map(type, node.args):
                    inspect.signature(function).bind(*node.args, **keywords)


def named(node: ast.expr, world: Mapping[str, Any]) -> Any:
    """What an expression of names and dots stands for; None where its first name is not imported.

    Raises:
        AttributeError: there is no such thing.
    """
    if isinstance(node, ast.Name):
        return world.get(node.id)
    if isinstance(node, ast.Attribute) and (owner := named(node.value, world)) is not None:
        return getattr(owner, node.attr)
    return None


@pytest.mark.parametrize("name", WORLDS)
def test_python_runs(name: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    monkeypatch.syspath_prepend(str(STANDIN))
    world = WORLDS[name](home)
    given = set(world)
    forget_lerobot()
    run_python(ROOT / name, world, {"/dev/ttyACM0": "usb0"})
    forget_lerobot()
    assert set(world) - given - {"__builtins__"}  # what the page's pieces made


class Still:
    """A policy that stays where it is, with what docs/serving.md looks at."""

    schema = Schema(
        "still", {"observation.images.front": (480, 640)}, {}, 2, 5, 5, names={"action": ("a", "b")}
    )

    def warm_up(self, max_batch: int) -> None:
        pass

    def predict(self, questions: Sequence[Request]) -> list[NDArray[np.float32]]:
        return [np.zeros((5, 2), np.float32) for _ in questions]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_python_on_the_robot_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the token and the certificate of the page itself, made out to this machine."""
    page = ROOT / "docs/serving.md"
    making = next(text for text in blocks(page, "bash") if "openssl" in text).split("smolact serve")[0]
    making = making.replace("gpu-box", "localhost")
    subprocess.run(["bash", "-ec", making], cwd=tmp_path, check=True, capture_output=True)
    monkeypatch.chdir(tmp_path)
    token = read_token(Path("token"))
    access = Auth(port=0, token=token, tls=read_certificate(Path("cert.pem"), Path("key.pem")))
    picture = np.zeros((480, 640, 3), np.uint8)
    world: dict[str, Any] = {
        "token": token,
        "joints": ("a", "b"),
        "observation": {"observation.images.front": picture},
    }
    with serving(Still(), access) as url:
        here = url.replace("127.0.0.1", "localhost")
        run_python(page, world, {"wss://gpu-box:8765": here, "timeout=0.5": "timeout=20"})
        assert world["chunk"].shape == (5, 2)
        world["policy"].close()

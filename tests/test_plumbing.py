"""What surrounds the code: one version, workflows that call what exists and cover what pyproject.toml allows, no private URLs."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
import yaml

import smolact
from smolact_client.client import _name_and_version

if sys.version_info >= (3, 11):
    import tomllib
else:  # pytest brings it
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECTS = [
    ROOT / "pyproject.toml",
    *sorted(ROOT.glob("packages/*/pyproject.toml")),
    *sorted(ROOT.glob("plugins/*/pyproject.toml")),
]
WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))
YAML = [
    *sorted(ROOT.glob(".github/**/*.yml")),
    ROOT / ".pre-commit-config.yaml",
    ROOT / "CITATION.cff",
]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


def project(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text())


def steps(path: Path) -> Iterator[dict[str, Any]]:
    content = load(path)
    for job in content["jobs"].values() if "jobs" in content else [content["runs"]]:
        yield from job["steps"]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(re.findall(r"^([\w.-]+)==([\w.]+)$", "\n".join(lines), re.MULTILINE))


@pytest.mark.parametrize("path", PROJECTS, ids=named)
def test_every_distribution_has_the_one_version(path: Path) -> None:
    content = project(path)
    assert "version" in content["project"].get("dynamic", ()), f"{path}: write dynamic = ['version']"
    source = (path.parent / content["tool"]["hatch"]["version"]["path"]).resolve()
    assert source == (ROOT / "src/smolact/__init__.py").resolve()
    try:
        installed = version(content["project"]["name"])
    except PackageNotFoundError:
        return
    assert installed == smolact.__version__, "scripts/install installs the new version"


def test_no_other_file_says_the_version() -> None:
    found = [
        named(path)
        for folder in ("src", "packages", "plugins")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".toml") and f'"{smolact.__version__}"' in path.read_text()
    ]
    assert found == ["src/smolact/__init__.py"]


def test_distributions_accept_each_other() -> None:
    minor = ".".join(smolact.__version__.split(".")[:2])
    for path in PROJECTS:
        for needed in project(path)["project"]["dependencies"]:
            if needed.startswith("smolact"):
                assert f">={minor}" in needed, f"{named(path)}: {needed}"


def test_the_changelog_begins_with_the_version() -> None:
    first = re.search(r"^## (\S+?),? ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first is not None
    assert first[1] == smolact.__version__


def test_the_client_names_itself_to_the_server() -> None:
    assert re.fullmatch(r"smolact-client( \d\S*)?", _name_and_version())


@pytest.mark.parametrize("path", YAML, ids=named)
def test_yaml_can_be_read(path: Path) -> None:
    assert isinstance(load(path), dict)


def test_workflows_call_what_exists() -> None:
    called = set()
    for path in (*WORKFLOWS, *sorted(ROOT.glob(".github/actions/*/action.yml"))):
        for step in steps(path):
            if step.get("uses", "").startswith("./"):
                assert (ROOT / step["uses"] / "action.yml").is_file(), step
            called |= set(re.findall(r"(?<![\w/.-])scripts/\w+", step.get("run", "")))
    assert {"scripts/check", "scripts/test", "scripts/build"} <= called
    hooks = [hook for repo in load(ROOT / ".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    for script in called | {hook["entry"] for hook in hooks if "entry" in hook}:
        assert (ROOT / script).stat().st_mode & 0o111, f"{script} can't be run"


def test_local_actions_get_the_inputs_that_they_declare() -> None:
    for path in WORKFLOWS:
        for step in steps(path):
            if step.get("uses", "").startswith("./"):
                inputs = load(ROOT / step["uses"] / "action.yml")["inputs"]
                assert step["with"].keys() == inputs.keys(), f"{named(path)}: {step}"


def test_the_matrix_has_both_ends_of_python_and_torch() -> None:
    """Also as strings: YAML reads 3.10 without quotes as 3.1."""
    content = project(ROOT / "pyproject.toml")["project"]
    pythons = [name.rpartition(" ")[2] for name in content["classifiers"] if re.search(r":: 3\.\d+$", name)]
    assert content["requires-python"] == f">={pythons[0]}"
    torch = next(needed for needed in content["dependencies"] if needed.startswith("torch>"))
    bounds = re.fullmatch(r"torch>=(\d+)\.(\d+),<(\d+)\.(\d+)", torch)
    assert bounds is not None
    torches = [f"{bounds[1]}.{bounds[2]}", f"{bounds[3]}.{int(bounds[4]) - 1}"]
    ends = {"python": [pythons[0], pythons[-1]], "torch": torches}
    assert load(ROOT / ".github/workflows/test.yml")["jobs"]["test"]["strategy"]["matrix"] == ends
    check = load(ROOT / ".github/workflows/check.yml")["jobs"]["check"]["strategy"]["matrix"]
    assert check["python"] == ends["python"]
    assert pins()["torch"].startswith(f"{torches[1]}.")


def test_commits_are_formatted_by_the_ruff_that_checks_them() -> None:
    repos = {repo["repo"]: repo for repo in load(ROOT / ".pre-commit-config.yaml")["repos"]}
    (rev,) = [repo["rev"] for name, repo in repos.items() if name.endswith("/ruff-pre-commit")]
    assert rev == f"v{pins()['ruff']}"


@pytest.mark.parametrize("path", [ROOT / "constraints.txt", *YAML], ids=named)
def test_no_address_is_that_of_one_machine(path: Path) -> None:
    """Nor a path of one."""
    text = path.read_text()
    assert set(re.findall(r"\w+://([^/\s\"']+)", text)) <= {"github.com"}
    assert not re.search(r"(?<![\w.$}~])/(home|opt|root|tmp|work)/", text)

"""`@command`: help, settings, words and exit codes, for a function of the settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from smolact.cli.command import command
from smolact.errors import ConfigError
from smolact.settings import setting


@dataclass
class Config:
    size: int = setting(1, "How large it is.")


calls: list[object] = []


@command(Config, "smolact shrink --size=2")
def shrink(config: Config) -> None:
    """Refuse."""
    raise ConfigError(f"--size={config.size} is too large. Lower --size.")


@command(Config, "smolact grow --size=2")
def grow(config: Config) -> None:
    """Let it grow."""
    calls.append(config)


@command(Config, "smolact run")
def run(config: Config, words: Sequence[str], argv: Sequence[str]) -> int:
    """Not shown: the module's docstring is."""
    calls.append((config.size, words, argv))
    return 3


@command(Config, "smolact raw")
def raw(argv: Sequence[str]) -> int:
    """Take the arguments as they are."""
    calls.append(argv)
    return 0


@pytest.fixture(autouse=True)
def no_calls() -> None:
    calls.clear()


def test_an_error_of_the_command_names_the_line_of_a_setting_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("# Settings\nsize: 7\n")
    with pytest.raises(ConfigError) as caught:
        shrink([f"--config_path={path}"])
    assert str(caught.value) == f"{path}, line 2: size=7 is too large. Lower size."
    with pytest.raises(ConfigError, match=r"^--size=8 is too large\. Lower --size\.$"):
        shrink([f"--config_path={path}", "--size=8"])


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_shows_the_docstring_the_usage_and_the_settings(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert grow([flag]) == raw([flag]) == run(["word", flag]) == 0 and not calls
    page, raw_page, run_page = capsys.readouterr().out.split("usage: ")[:3]
    assert page == "Let it grow.\n\n"
    assert raw_page.startswith("smolact grow --size=2\n") and "How large it is." in raw_page
    assert run_page.rstrip().endswith((__doc__ or "").strip()) and "Not shown" not in run_page


def test_a_command_gets_its_settings_and_returns_0() -> None:
    assert grow(["--size", "2"]) == 0 and calls == [Config(2)]


def test_a_command_gets_what_it_has_parameters_for() -> None:
    argv = ["folder", "--size=2", "name"]
    assert run(argv) == 3
    assert calls == [(2, ["folder", "name"], argv)]
    assert raw(["--nothing", "x"]) == 0 and calls[1:] == [["--nothing", "x"]]


@pytest.mark.parametrize(
    ("argv", "message"), [(["word"], "'word' is not understood"), (["--sise=2"], "--size")]
)
def test_mistakes_raise_before_the_command_is_called(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        grow(argv)
    assert not calls

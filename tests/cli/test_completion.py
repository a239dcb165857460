"""`smolact completion`: the words that it offers, and real shells that complete with its scripts."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from smolact.backbones.presets import PRESETS
from smolact.cli.completion import SCRIPTS, TYPES, candidates, subcommands
from smolact.cli.help import settings_of
from smolact.cli.main import COMMANDS, main
from smolact.policies.smolvla.configuration_smolvla import SmolVLAConfig
from smolact.training.config import TrainConfig
from tests.cli.test_main import HEAVY, run_python

CHECKPOINT = Path(__file__).parents[1] / "parity/data/lerobot_checkpoint"


def words(line: str) -> list[str]:
    return [one.word for one in candidates(line)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("smolact tr", ["train", "train-tokenizer"]),
        (
            "smolact train",
            ["train", "train-tokenizer"],
        ),  # the whole word is one of those that can stand there
        ("smolact dataset co", ["compact", "convert"]),
        ("smolact --v", ["--version"]),
        ("smolact train --cache.d", ["--cache.dtype="]),
        ("smolact train --pol", ["--policy."]),
        ("smolact train --debug --num_w", ["--num_workers="]),
        ("smolact train --num_workers=0 --num_w", []),
        ("smolact train --policy.init=", [f"--policy.init={one}" for one in ("base", "vlm", "random")]),
        ("smolact train --report=f", ["--report=false"]),
        ("smolact train --policy.init v", ["vlm"]),
        ("smolact train --policy.type=smolv", ["--policy.type=smolvla"]),
        ("smolact train --policy.chunk", []),
        ("smolact train --policy.type=smolvla --policy.chunk", ["--policy.chunk_size="]),
        ("smolact train --policy.type smolvla --policy.chunk", ["--policy.chunk_size="]),
        (f"smolact train --policy.path={CHECKPOINT} --policy.chunk", ["--policy.chunk_size="]),
        ("smolact train --policy.path=nobody/nothing --policy.chunk", []),
        ("smolact rollout --policy.path=ws://here --policy.tok", ["--policy.token_file="]),
        ("smolact record --robot.type=sim --robot.see", ["--robot.seed="]),
        ("smolact nothing ", []),
        ("smolact train '--num_w", []),
    ],
)
def test_what_can_follow_a_line(line: str, expected: list[str]) -> None:
    assert words(line) == expected


def test_every_setting_of_a_command_can_be_reached_from_its_sections() -> None:
    line, found, waiting = "smolact train --policy.type=smolvla ", set[str](), [""]
    while waiting:
        for word in words(line + waiting.pop()):
            (waiting.append if word.endswith(".") else found.add)(word)
    rows = [row for cls in (TrainConfig,) for row in settings_of(cls)[0].values()]
    expected = {f"--{row.name}=" for group in rows for row in group} - {"--policy.type="}
    expected |= {f"--policy.{row.name}=" for group in settings_of(SmolVLAConfig)[0].values() for row in group}
    assert found == expected | {"--config_path=", "--help", "--debug"}


def test_every_command_offers_its_settings() -> None:
    for name, command in COMMANDS.items():
        inner = subcommands(command)
        for typed in [f"{name} {one}" for one in inner] if inner else [name]:
            assert "--help" in words(f"smolact {typed} -"), typed
            assert len(words(f"smolact {typed} -")) > 3, typed


def test_names_that_are_offered_as_values_are_those_of_the_code() -> None:
    assert {
        "policy.vlm_model_name": PRESETS,
        "policy.vlm_checkpoint": PRESETS,
    } == TYPES


@pytest.mark.parametrize("line", ["smolact tr", "smolact train --policy.type=smolvla --policy.chunk"])
def test_completion_imports_nothing_heavy(line: str) -> None:
    code = f"""
import json, sys
from smolact.cli.completion import candidates
assert candidates({line!r})
print(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))
"""
    assert not set(json.loads(run_python(code))) & set(HEAVY)


def test_a_shell_that_has_no_script_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion"]) == 2
    assert "needs the name of a shell: smolact completion bash|zsh|fish" in capsys.readouterr().err
    assert main(["completion", "csh"]) == 2
    assert "expected one of bash, zsh, fish" in capsys.readouterr().err
    assert main(["completion", "bash", "smolact", "tr"]) == 2
    assert "takes one shell, not 3 words" in capsys.readouterr().err


SETUP = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], 'eval "$(smolact completion bash)"'),
    "zsh": (
        ["zsh", "-f", "-i"],
        'autoload -U compinit && compinit -u; eval "$(smolact completion zsh)"',
    ),
    "fish": (["fish", "--no-config", "-i"], "smolact completion fish | source"),
}
here = pytest.mark.parametrize(
    "shell",
    [
        pytest.param(name, marks=pytest.mark.skipif(shutil.which(name) is None, reason=f"needs {name}"))
        for name in SCRIPTS
    ],
)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A home of its own, a `smolact` on its PATH, and a file to complete."""
    program = tmp_path / "bin/smolact"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m smolact "$@"\n')
    program.chmod(0o755)
    (tmp_path / "demo_dataset").mkdir()
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "HOME": str(tmp_path), "PATH": path, "TERM": "xterm", "PS1": "> ", "LC_ALL": "C"}


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("line", "word", "expected"),
    [
        ("smolact train --num_w", "--num_w", ["--num_workers="]),
        ("smolact train-t", "train-t", ["train-tokenizer "]),
        ("smolact train --policy.type=", "", ["smolvla ", "smolandfast "]),
        ("smolact train --policy.type=smolv", "smolv", ["smolvla "]),
        ("smolact doctor ./demo", "./demo", []),
    ],
)
def test_the_function_of_bash(line: str, word: str, expected: list[str], environment: dict[str, str]) -> None:
    """With the variables and the arguments that readline gives it, without readline."""
    script = (
        'eval "$(smolact completion bash)"; COMP_LINE=$1; COMP_POINT=${#1}; COMP_WORDS=($1); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); '
        '_smolact smolact "$2" ""; printf "%s|" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "-ec", script, "test", line, word],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and done.stderr == ""
    assert [one for one in done.stdout.split("|") if one] == expected


@here
@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("smolact train-t", "train-tokenizer"),
        ("smolact train --policy.type=smolv", "--policy.type=smolvla"),
        ("smolact train --policy.type=smolvla --policy.chunk", "--policy.chunk_size="),
        ("smolact doctor --policy.path=./demo_d", "./demo_dataset"),
    ],
)
def test_the_tab_key(
    shell: str, typed: str, expected: str, environment: dict[str, str], tmp_path: Path
) -> None:
    command, setup = SETUP[shell]
    # A terminal of its own for the shell, made in a process that has no other threads.
    terminal = [sys.executable, "-c", "import pty, sys; pty.spawn(sys.argv[1:])", *command]
    with subprocess.Popen(
        terminal,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        cwd=tmp_path,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            # The word is split in the setup, so that its echo is not taken for its output.
            for text, seen in (
                (f"stty cols 200; {setup}; echo rea''dy\n", "ready"),
                (f"{typed}\t", expected),
            ):
                process.stdin.write(text.encode())
                process.stdin.flush()
                shown, ends = "", time.monotonic() + 90
                while seen not in shown:
                    assert time.monotonic() < ends, shown
                    if select.select([process.stdout], [], [], 1)[0]:
                        shown += os.read(process.stdout.fileno(), 65536).decode(errors="replace")
        finally:
            process.kill()

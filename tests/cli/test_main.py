"""The `smolact` command as a user types it."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

import smolact
from smolact.cli import main as cli
from smolact.cli.help import field_docs, help_text
from smolact.cli.main import COMMANDS, main
from smolact.errors import NotFoundError, WriteError
from smolact.training.config import TrainConfig

HEAVY = (
    "torch",
    "numpy",
    "transformers",
    "accelerate",
    "pyarrow",
    "av",
    "gymnasium",
    "rich",
    "huggingface_hub",
)


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["train", "--help"],
        ["train", "--help", "--policy.type=smolvla"],
        ["eval", "--help"],
        ["info", "--help"],
        ["dataset", "--help"],
        ["dataset", "delete", "--help"],
        ["dataset", "preview-transforms", "--help"],
    ],
)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = f"""
import io, json, sys
from contextlib import redirect_stdout
from smolact.cli.main import main
with redirect_stdout(io.StringIO()) as shown:
    assert main({words!r}) == 0
assert shown.getvalue()
print(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))
"""
    assert not set(json.loads(run_python(code))) & set(HEAVY)


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)


def test_no_command_shows_the_overview_and_counts_as_misuse(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: smolact COMMAND" in capsys.readouterr().out


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    shown = capsys.readouterr().err
    assert "no command 'trian'. Did you mean 'train'?" in shown
    assert "Traceback" not in shown


def test_an_error_is_one_message_and_debug_shows_where_it_came_from(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", "--stpes=3"]) == 2
    assert "Did you mean '--steps'?" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no flag --stpes"):
        main(["train", "--debug", "--stpes=3"])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotFoundError("[it] is not there"), 1),
        (WriteError(28, "[it] is full"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int
) -> None:
    def fail(words: list[str]) -> int:
        raise error

    monkeypatch.setattr(cli, "_run", fail)
    assert main(["train"]) == code
    shown = capsys.readouterr().err
    assert shown.strip() == ("Stopped." if code == 130 else f"error: {error.args[-1]}")


INTERRUPTED_IMPORT = """
import runpy, sys

class Interrupts:
    def find_spec(self, name, *_):
        if name == "smolact.cli":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupts())
runpy.run_module("smolact", run_name="__main__")
"""


def test_ctrl_c_while_the_command_line_is_imported_is_one_line() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(smolact.__file__).parents[1])}
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IMPORT], env=environment, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stderr) == (130, "\nStopped.\n")


def test_a_package_that_is_not_installed_is_no_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(words: list[str]) -> int:
        import_module(words[0])
        return 0

    monkeypatch.setattr(cli, "_run", fail)
    assert main(["not_installed.part"]) == 1
    assert "Run: pip install not_installed" in capsys.readouterr().err
    assert main(["smolact.not_there"]) == 70
    assert "This is a bug in smolact" in capsys.readouterr().err


def _by_torch() -> None:
    import torch

    torch.empty(2**48)


def _by_numpy() -> None:
    import numpy as np

    np.empty(2**50, np.uint8)


def _by_python() -> None:
    bytearray(2**60)


def _on_a_gpu() -> None:
    import torch

    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 23.64 GiB of which 1.2 GiB is free."
    )


def _of_the_system() -> None:
    raise OSError(errno.ENOMEM, "Cannot allocate memory")


@pytest.mark.parametrize(
    ("fail", "command", "messages"),
    [
        (
            _by_torch,
            "train",
            (
                "The machine's memory ran out: 1 PiB more were needed.",
                "--batch_size",
                "--gradient_accumulation_steps",
            ),
        ),
        (_by_numpy, "eval", ("The machine's memory ran out: 1 PiB more", "Lower --eval.batch_size")),
        (_by_python, "dataset", ("The machine's memory ran out. Close other programs",)),
        (
            _on_a_gpu,
            "serve",
            ("The GPU's memory ran out: 2.5 GiB more", "--policy.fp8=true", "--max-batch"),
        ),
        (_of_the_system, "rollout", ("The machine's memory ran out.", "--policy.int8=true")),
    ],
)
def test_too_little_memory_is_no_bug(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fail: Callable[[], None],
    command: str,
    messages: tuple[str, ...],
) -> None:
    monkeypatch.setattr(cli, "_run", lambda words: fail())
    assert main([command]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    for message in messages:
        assert message in shown
    with pytest.raises((RuntimeError, MemoryError, OSError)):
        main([command, "--debug"])


@pytest.mark.parametrize("error", [RuntimeError("shape '[2]' is invalid"), OSError(errno.EIO, "a bad disk")])
def test_other_errors_do_not_blame_the_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def fail(words: list[str]) -> int:
        raise error

    monkeypatch.setattr(cli, "_run", fail)
    assert main(["train"]) == 70
    assert "memory" not in capsys.readouterr().err


def test_the_first_picture_on_a_machine_says_nothing_of_fonts(tmp_path: Path) -> None:
    code = "from smolact.cli.main import main; main(['dataset']); import matplotlib.font_manager"
    environment = {**os.environ, "MPLCONFIGDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stderr == ""


def test_the_help_of_train_has_every_flag_of_the_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help", "--policy.type=smolvla"]) == 0
    shown = capsys.readouterr().out
    for flag in (
        "policy.type", "policy.path", "policy.optimizer_lr", "policy.scheduler_warmup_steps", "policy.num_vlm_layers",
        "policy.load_vlm_weights", "policy.push_to_hub", "dataset.repo_id", "dataset.root", "batch_size", "steps", "env.type",
        "eval_freq", "eval.n_episodes", "eval.batch_size", "log_freq", "wandb.enable", "resume",
    ):  # fmt: skip
        assert f"--{flag}=" in shown
    assert "--dataset.streaming" not in shown  # it is refused, so it is not offered


def test_help_without_a_type_says_how_to_see_more() -> None:
    assert "add --policy.type=NAME" in help_text(TrainConfig, "smolact train", "Trains.")


def test_docs_are_read_from_strings_and_comments() -> None:
    from tests.cli import documented

    assert field_docs(documented.Documented) == {
        "below": "A string below.",
        "beside": "A comment beside.",
        "above": "Two lines above.",
        "long": "After several lines.",
    }


def test_info_tells_versions_and_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    assert all(
        f"{name} " in shown for name in ("smolact", "python", "torch", "accelerate", "devices", "wandb")
    )


def test_info_counts_parameters_operations_and_memory_of_any_configuration(
    capsys: pytest.CaptureFixture[str],
) -> None:
    policy = ("--policy.type=smolvla", "--policy.vlm_model_name=smolvlm2-500m")
    assert main(["info", *policy, "--policy.num_steps=5", "--batch_size=8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = dict(line.split("  ", 1) for line in lines if line)
    assert rows["all"].split() == ["450,046,176", "22%", "487", "GFLOP", "1.68", "GiB"]
    assert rows["├─ vision tower"].split()[:2] == ["86,433,024", "–"]
    assert any(re.search(r"├─ 8 layers \(1, 3 … 15\) +48,\d+,\d+ +all +183 MiB", line) for line in lines)
    assert rows["trains"].strip() == "99,880,992 of 450,046,176 parameters"
    assert "2 images of 512×512" in rows["FLOPs for"]
    assert rows["replan"].strip() == "528 GFLOP (vision + prefix + expert × 5)"
    assert rows["weights"].strip() == "1.68 GiB in float32, 858 MiB in bfloat16"
    assert rows["AdamW"].strip() == "762 MiB"
    assert "8 samples" in rows["activations"]


def test_info_refuses_an_empty_batch(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--policy.type=smolvla", "--batch_size=0"]) == 2
    assert "--batch_size=0 is too small" in capsys.readouterr().err


def test_what_nobody_foresaw_is_told_in_a_line_and_traced_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import smolact.cli.info

    def broken(argv: object) -> int:
        raise KeyError("surprise")

    monkeypatch.setattr(smolact.cli.info, "run", broken)
    assert main(["info"]) == 70
    assert "This is a bug in smolact: KeyError: 'surprise'" in capsys.readouterr().err
    with pytest.raises(KeyError):
        main(["info", "--debug"])

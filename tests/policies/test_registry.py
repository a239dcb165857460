"""A policy from an installed distribution is a type like the built-in ones; a broken one harms only its own commands."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from smolact.cli.main import main
from smolact.policies.factory import get_config_class, get_policy_class
from smolact.registry import POLICIES
from tests.documents import ROOT
from tests.installed import example, smolact, write_metadata

TRAIN = ("--policy.type=blind", "--policy.device=cpu", "--steps=20", "--batch_size=8", "--num_workers=0")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return example("own_policy", tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def run(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of demonstrations and of a training run, evaluated on the way."""
    folder = tmp_path_factory.mktemp("work")
    smolact(
        site, "dataset", "make-demos", "--env.type=tabletop", "--episodes=3", "--output=demos", cwd=folder
    )
    shown = smolact(
        site,
        *("train", "--dataset.root=demos", "--output_dir=run", *TRAIN),
        *("--env.type=tabletop", "--eval_freq=20", "--eval.n_episodes=1"),
        cwd=folder,
    )
    assert "random weights" in shown.stdout + shown.stderr
    return folder


def test_the_example_is_short() -> None:
    files = (ROOT / "examples/own_policy").rglob("*.py")
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files) <= 90


def test_an_installed_policy_trains_without_a_vlm_and_without_cameras(run: Path) -> None:
    checkpoint = run / "run/checkpoints/last/pretrained_model"
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["type"] == "blind" and list(config["input_features"]) == ["observation.state"]
    assert not (checkpoint / "vlm").exists()


def test_a_checkpoint_of_an_installed_policy_is_evaluated_and_drives(site: Path, run: Path) -> None:
    done = smolact(site, "eval", "--policy.path=run", "--env.type=tabletop", "--eval.n_episodes=1", cwd=run)
    assert "2 of 4 actions of each chunk were executed" in done.stdout
    robot = ("--robot.type=sim", "--robot.env=tabletop", "--realtime=false", "--duration=1")
    assert "success: 0 of 1" in smolact(site, "rollout", "--policy.path=run", *robot, cwd=run).stdout


def test_a_server_of_an_installed_policy_answers_a_machine_without_it(site: Path, run: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "smolact", "serve", "--policy.path=run", f"--port={port}"]
    server = subprocess.Popen(command, cwd=run, env={**os.environ, "PYTHONPATH": paths})
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and server.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        env = ("--env.type=tabletop", "--eval.n_episodes=1", "--language=false")
        done = smolact(
            run / "nothing_installed", "eval", f"--policy.path=ws://127.0.0.1:{port}", *env, cwd=run
        )
    finally:
        server.terminate()
        server.wait(60)
    assert "0 of 1" in done.stdout


def test_an_installed_policy_is_described_and_published_by_its_type(site: Path, run: Path) -> None:
    assert re.search(r"net +712 ", smolact(site, "info", "--policy.path=run", cwd=run).stdout)
    assert "checkpoint opens: weights fit" in smolact(site, "doctor", "run", cwd=run).stdout
    card = smolact(site, "push", "run", "me/blind", "--dry-run", cwd=run).stdout
    assert "A blind policy of 712 parameters: it acts" in card and "vision-language-action" not in card
    assert "where the distribution `own-policy` is installed" in card


def test_help_and_completion_know_an_installed_policy(site: Path) -> None:
    assert "--policy.width=64" in smolact(site, "train", "--policy.type=blind", "--help").stdout
    offered = smolact(site, "completion", "bash", "smolact train --policy.type=").stdout
    assert "--policy.type=blind" in offered and "--policy.type=smolvla" in offered
    offered = smolact(site, "completion", "bash", "smolact train --policy.type=blind --policy.wi").stdout
    assert offered.strip() == "--policy.width="


def test_without_its_distribution_a_checkpoint_is_of_an_unknown_type(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", f"--policy.path={run / 'run'}"]) == 2
    assert "There is no policy type 'blind'; known: smolvla, smolandfast." in capsys.readouterr().err


def test_a_vlms_weights_are_refused_for_a_policy_without_one(site: Path, run: Path) -> None:
    flags = ("train", "--dataset.root=demos", *TRAIN, "--policy.init=vlm", "--output_dir=other")
    assert "a 'blind' policy has no VLM" in smolact(site, *flags, cwd=run, code=2).stderr


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("import missing_dependency", "No module named 'missing_dependency'. Install what it needs"),
        ("raise RuntimeError('old')", "old. Update that distribution"),
        ("", "module 'broken_policy' has no attribute 'Config'"),
        ("Config = 3", "is no subclass of PolicyConfig with type = 'broken' and a policy_class"),
    ],
)
def test_a_broken_distribution_is_named_when_its_type_is_asked_for(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    module: str,
    reason: str,
) -> None:
    write_metadata(tmp_path, "broken-thing", "0.3", {POLICIES.group: {"broken": "broken_policy:Config"}})
    (tmp_path / "broken_policy.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_policy", raising=False)
    assert get_policy_class("smolvla").__name__ == "SmolVLAPolicy"
    assert "broken" in POLICIES
    assert main(["train", "--policy.type=broken", "--dataset.root=there"]) in (1, 2)
    shown = capsys.readouterr().err
    assert "'broken' of the distribution 'broken-thing' 0.3" in shown and reason in shown


def test_a_type_has_one_provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        write_metadata(tmp_path, name, "1", {POLICIES.group: {"both": f"{name}:Config", "smolvla": "x:Y"}})
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"'one' 1 and by the distribution 'two' 1\. Uninstall one"):
        get_config_class("both")
    with pytest.raises(ValueError, match=r"'smolvla' is built in, and the distribution '(one|two)' 1"):
        get_config_class("smolvla")


def test_types_are_found_without_importing_anything(site: Path) -> None:
    code = "import sys; from smolact.registry import POLICIES; print(list(POLICIES), 'torch' in sys.modules, 'own_policy' in sys.modules)"
    paths = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.strip() == "['smolvla', 'smolandfast', 'blind'] False False"

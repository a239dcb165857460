"""`smolact serve` as a user types it, and the commands that go to it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from smolact.cli.main import main
from smolact.cli.serve import announcement
from smolact.serving.auth import Auth
from smolact_client import RemotePolicy, Schema
from tests.evaluation.test_suite import checkpoint
from tests.robots.gate import OPEN

TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return checkpoint(tmp_path_factory.mktemp("policy"), 0)


def test_a_policy_is_served_evaluated_recorded_with_and_stopped(policy: str, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    words = ["serve", f"--policy.path={policy}", "--policy.device=cpu", "--port=0", f"--token-file={token}"]
    with subprocess.Popen(
        [sys.executable, "-m", "smolact", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as server:
        try:
            use_it(server, token, tmp_path)
            server.send_signal(signal.SIGINT)
            out, err = server.communicate(timeout=60)
        finally:
            server.kill()
    assert server.returncode == 0, err
    assert out.endswith("Stopped.\n")
    assert "event=session_began" in err and "Traceback" not in err


def use_it(server: subprocess.Popen[str], token: Path, folder: Path) -> None:
    assert server.stdout is not None
    said = server.stdout.readline()
    found = re.search(r"Serving smolvla at (ws://127\.0\.0\.1:\d+), to whoever has the token", said)
    assert found, said
    url = found[1]
    with RemotePolicy(url, token=TOKEN, timeout=60) as remote:
        seen = {"observation.image": np.zeros((64, 64, 3), np.uint8), "observation.state": np.zeros(2)}
        assert remote.predict_action_chunk(seen, "go").shape == (8, 2)
    there = [f"--policy.path={url}", f"--policy.token_file={token}"]
    episodes = ["--env.type=tabletop", "--eval.n_episodes=1", "--eval.batch_size=1", "--language=false"]
    assert main(["eval", *there, *episodes, f"--output_dir={folder / 'eval'}", "--n_videos=0"]) == 0
    assert (folder / "eval" / "metrics.json").is_file()
    robot = ["--robot.type=sim", "--robot.env=tabletop", "--realtime=false", *OPEN]
    data = ["--dataset.num_episodes=1", "--dataset.video=false", "--dataset.episode_time_s=1"]
    assert main(["record", *there, *robot, *data, f"--dataset.root={folder / 'd'}"]) == 0
    assert main(["eval", there[0], *episodes]) == 1  # without the token


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "needs a policy: --policy.path=CHECKPOINT"),
        (["--policy.path={policy}", "--host=0.0.0.0"], "neither a token (--token-file) nor TLS"),
        (["--policy.path={policy}", "--token-file=gone.txt"], "The token's file gone.txt is not there"),
        (["--policy.path={policy}", "--tls-key=key.pem"], "give --tls-cert, too"),
        (["--policy.path={policy}", "--max-clients=0"], "--max_clients=0 is too small"),
        (["--policy.path={policy}", "--tokenfile=x"], "Did you mean"),
        (["--policy.path={policy}", "--policy.int8", "--engine=false"], "leave out --engine=false"),
        (["--policy.path={policy}", "--policy.fp8", "--policy.int8"], "round the same weights"),
    ],
)
def test_what_is_wrong_is_told(
    words: list[str], message: str, policy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *(word.format(policy=policy) for word in words)]) in (1, 2)
    assert message in capsys.readouterr().err.replace("\n", " ")


def test_the_operator_is_told_what_is_expected() -> None:
    schema = Schema(
        "smolvla",
        {"observation.images.front": (480, 640)},
        {"observation.state": 2},
        2,
        50,
        25,
        names={"action": ("pan", "grip")},
        action_range=((-90.0, 90.5), (0.0, 100.0)),
    )
    text = announcement("ws://0.0.0.0:1", Auth("0.0.0.0", insecure=True), schema)
    for words in (
        "to anybody",
        "observation.images.front  480×640",
        "2 numbers: pan, grip",
        "50 actions, of which 25",
        "-90 to 90.5, 0 to 100",
        "INSECURE",
    ):
        assert words in text

"""What we publish, LeRobot fetches and opens: a policy with its VLM, and a dataset by its tag. Needs LeRobot 0.6.1."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from smolact.datasets.sharing import dataset_upload
from smolact.policies.sharing import contents as of_policy
from smolact.policies.sharing import opens_in_lerobot
from smolact.uploads import Upload, publish
from tests.datasets.make import write
from tests.hub_standin import THEIRS, StandIn
from tests.policies.test_merging import DATA, DATASET, LEROBOT, actions, distance, noise, observation
from tests.training.runs import SMALL, run

pytestmark = [
    THEIRS,
    pytest.mark.lerobot,
    pytest.mark.skipif(
        LEROBOT is None, reason="set SMOLACT_LEROBOT_PYTHON to a Python that has LeRobot 0.6.1"
    ),
]


def lerobot(hub: StandIn, home: Path, *words: object) -> str:
    """LeRobot with our stand-in in the Hub's place, and nothing on the disk."""
    variables = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "PATH": os.environ["PATH"],
    }
    done = subprocess.run(
        [str(LEROBOT), *map(str, words)], capture_output=True, text=True, env=variables, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_policy(hub: StandIn, tmp_path: Path) -> None:
    vlm = DATA / "tiny_vlm"
    publish(Upload("model", {path.name: path for path in vlm.iterdir() if path.is_file()}), "me/vlm")
    flags = [flag for flag in SMALL if "vlm_model_name" not in flag]
    own = (
        "--policy.vlm_model_name=me/vlm",
        "--policy.allow_frozen_random=true",
        "--policy.load_vlm_weights=false",
    )
    ended, _ = run(tmp_path / "run", "--steps=1", policy=(*flags, *own))
    assert ended.checkpoint is not None
    upload = of_policy(ended.checkpoint, name="me/x")
    assert opens_in_lerobot(json.loads(upload.files["config.json"]))  # type: ignore[arg-type]
    publish(upload, "me/x")
    save_file(observation() | {"noise": noise()}, tmp_path / "inputs.safetensors")
    output = tmp_path / "chunks.safetensors"
    script = Path(__file__).with_name("lerobot_predicts.py")
    lerobot(hub, tmp_path / "home", script, DATASET, tmp_path / "inputs.safetensors", output, "me/x")
    assert distance(load_file(output)["me/x"], actions(ended.checkpoint)) < 1e-5


def test_a_dataset(hub: StandIn, tmp_path: Path) -> None:
    publish(dataset_upload(write(tmp_path / "set", (7, 4)), name="me/set"), "me/set")
    code = (
        "from lerobot.datasets.lerobot_dataset import LeRobotDataset as D; d = D('me/set', video_backend='pyav'); "
        "print('found', d.revision, len(d), d.num_episodes, d[3]['task'])"
    )
    found = lerobot(hub, tmp_path / "home", "-c", code)
    assert "found v3.0 11 2 Push the red block." in found

"""IL-Studio itself with our policies in it: its `train.py`, resumed, its normalizers and `MetaPolicy`, and what is exported.

SMOLACT_IL_STUDIO names a checkout of it (a copy is used), SMOLACT_IL_STUDIO_PYTHON a Python with its requirements and smolact[il-studio].
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from smolact.cli.main import main

CHECKOUT, PYTHON = os.environ.get("SMOLACT_IL_STUDIO"), os.environ.get("SMOLACT_IL_STUDIO_PYTHON", "python")
pytestmark = pytest.mark.skipif(not CHECKOUT, reason="SMOLACT_IL_STUDIO names no checkout of IL-Studio")

TASK = """
datasets:
  - name: transfer_test
    class: AlohaSimDataset
    args: {dataset_path_list: [data/transfer_test], camera_names: [primary], chunk_size: 20,
           ctrl_space: joint, ctrl_type: abs, image_size: [64, 48]}
action_dim: 14
state_dim: 14
image_size: [64, 48]
"""
EPISODES = """
import h5py, numpy as np, pathlib
folder = pathlib.Path("data/transfer_test"); folder.mkdir(parents=True)
for number in range(2):
    draws = np.random.default_rng(number)
    with h5py.File(folder / f"episode_{number}.hdf5", "w") as file:
        file["action"] = draws.normal(0, 0.3, (30, 14)).astype(np.float32)
        file["observations/qpos"] = draws.normal(0, 0.3, (30, 14)).astype(np.float32)
        file["observations/images/top"] = draws.integers(0, 256, (30, 48, 64, 3), dtype=np.uint8)
"""
COMPARED = """
import sys; sys.path.insert(0, ".")
from argparse import Namespace
import numpy as np, smolact, torch
from benchmark.base import MetaObs, MetaPolicy
from data_utils.utils import load_normalizers
from policy.direct_loader import load_model_from_checkpoint
args = Namespace(model_name_or_path="run/checkpoint-4", device="cpu", chunk_size=64)
normalizers, space, kind = load_normalizers(args)
model = load_model_from_checkpoint(args.model_name_or_path, args)["model"]
meta = MetaPolicy(model, args.chunk_size, normalizers["action"], normalizers["state"], space, kind)
state, picture = np.full(14, 0.1, np.float32), np.arange(3 * 48 * 64, dtype=np.int64).astype(np.uint8).reshape(3, 48, 64)
torch.manual_seed(0)
said = meta.inference(MetaObs(state=state[None].copy(), image=picture[None, None], raw_lang=["transfer the cube"]))
theirs = np.stack([step[0]["action"] for step in said])
policy, preprocess, postprocess = smolact.load_policy("exported", device="cpu")
seen = {"observation.state": torch.from_numpy(state), "observation.images.camera1": torch.from_numpy(picture)}
torch.manual_seed(0)
ours = postprocess(policy.predict_action_chunk(preprocess({**seen, "task": "transfer the cube"})))[0].numpy()
np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
"""
POLICIES = {
    "smolvla": ("vlm_model_name=tiny", "num_vlm_layers=2", "num_steps=2", "resize_imgs_with_padding=[64,64]"),
    "smolandfast": ("vlm_checkpoint=tiny", "action_tokens=bins", "scale_factor=4"),
}


@pytest.mark.parametrize("name", POLICIES)
def test_il_studio_trains_resumes_and_drives(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "ILStudio"
    shutil.copytree(
        str(CHECKOUT), folder, ignore=shutil.ignore_patterns(".git", "ckpt", "data", "third_party")
    )
    shutil.copytree(f"{CHECKOUT}/data_utils", folder / "data_utils", dirs_exist_ok=True)
    if (folder / ".smolact-il-studio").exists():
        assert main(["il-studio", "uninstall", str(folder)]) == 0
    assert main(["il-studio", "install", str(folder)]) == 0
    (folder / "configs/task/transfer_test.yaml").write_text(TASK)

    def run(*words: str) -> None:
        environment = {**os.environ, "ILSTD_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run([PYTHON, *words], cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]

    run("-c", EPISODES)
    chunk = ("chunk_size=10", "n_action_steps=10")
    settings = [f"--policy.{word}" for word in (*POLICIES[name], *chunk)]
    for steps in (2, 4):
        training = {"max_steps": steps, "save_steps": 2, "logging_steps": 1, "dataloader_num_workers": 0}
        words = [f"--training.{key}={value}" for key, value in training.items()]
        run("train.py", "-p", name, "-t", "transfer_test", "-c", "debug", "-o", "run", *settings, *words)
    state = json.loads((folder / "run/checkpoint-4/trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"]] == [1, 2, 3, 4]  # it went on from step 2
    assert json.loads((folder / "run/policy_metadata.json").read_text())["policy_name"] == name

    run("-m", "smolact", "il-studio", "export", "run/checkpoint-4", "--output=exported")
    run("-c", COMPARED)

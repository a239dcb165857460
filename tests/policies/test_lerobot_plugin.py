"""The plugin in LeRobot itself: `lerobot-train`, `lerobot-eval` and `lerobot-rollout` with our policies; checkpoints both ways."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import smolact
from smolact.policies.conversion import convert_checkpoint
from smolact.policies.factory import get_config_class, make_policy, make_pre_post_processors
from smolact.types import FeatureType, PolicyFeature
from tests.training.runs import DATASET

LeRobot = Callable[..., str]
LEROBOT = os.environ.get("SMOLACT_LEROBOT_PYTHON")
ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.lerobot,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not LEROBOT, reason="SMOLACT_LEROBOT_PYTHON names no Python with LeRobot 0.6.1"),
]

COMMON = (
    f"--dataset.root={DATASET}",
    "--dataset.repo_id=some/dataset",
    "--dataset.video_backend=pyav",
    "--policy.push_to_hub=false",
    "--policy.device=cpu",
    "--policy.chunk_size=4",
    "--policy.n_action_steps=2",
    "--batch_size=2",
    "--steps=3",
    "--log_freq=1",
    "--num_workers=0",
    "--wandb.enable=false",
    "--env_eval_freq=0",
)
POLICIES = {
    "smolvla_fast": ("--policy.vlm_model_name=tiny", "--policy.resize_imgs_with_padding=[64,64]"),
    "smolandfast": (
        "--policy.vlm_checkpoint=tiny",
        "--policy.scale_factor=2",
        "--policy.action_tokens=bins",
        "--policy.max_input_seq_len=4096",
    ),
}


@pytest.fixture(scope="module")
def lerobot(tmp_path_factory: pytest.TempPathFactory) -> LeRobot:
    """Runs one of LeRobot's modules, or code, in its own Python, which finds our plugin installed."""
    site = tmp_path_factory.mktemp("site")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--ignore-requires-python"]
    subprocess.run(
        [*install, f"--target={site}", str(ROOT / "plugins" / "lerobot_policy_smolact")], check=True
    )
    ours = (site, ROOT, ROOT / "src", ROOT / "packages" / "smolact-client" / "src")
    path = os.pathsep.join([*map(str, ours), os.environ.get("PYTHONPATH", "")])

    def run(*words: str) -> str:
        environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "SDL_VIDEODRIVER": "dummy"}
        done = subprocess.run([str(LEROBOT), *words], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout + done.stderr

    return run


@pytest.fixture(scope="module", params=list(POLICIES))
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, lerobot: LeRobot
) -> tuple[str, Path]:
    """Three steps of `lerobot-train`."""
    kind: str = request.param
    folder = tmp_path_factory.mktemp("lerobot") / kind
    lerobot(
        "-m",
        "lerobot.scripts.lerobot_train",
        f"--policy.type={kind}",
        *COMMON,
        *POLICIES[kind],
        f"--output_dir={folder}",
    )
    return kind, folder / "checkpoints" / "last" / "pretrained_model"


PREDICT = """
import sys, torch
from lerobot.utils.import_utils import register_third_party_plugins
register_third_party_plugins()
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
folder, seen, answer = sys.argv[1:]
batch = torch.load(seen)
noise = batch.pop("noise")
config = PreTrainedConfig.from_pretrained(folder)
config.device = "cpu"
policy = get_policy_class(config.type).from_pretrained(folder, config=config)
before, after = make_pre_post_processors(config, folder, preprocessor_overrides={"device_processor": {"device": "cpu"}})
torch.save(after(policy.predict_action_chunk(before(batch), noise=noise)), answer)
"""


def observation() -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)
    features = json.loads((DATASET / "meta" / "info.json").read_text())["features"]
    batch: dict[str, object] = {
        "observation.state": torch.randn(1, *features["observation.state"]["shape"], generator=generator)
    }
    for key, feature in features.items():
        if feature["dtype"] == "video":
            height, width, _ = feature["shape"]
            batch[key] = torch.rand(1, 3, height, width, generator=generator)
    return {**batch, "task": ["push the block"]}


def here(folder: Path, noise: torch.Tensor) -> torch.Tensor:
    policy, preprocess, postprocess = smolact.load_policy(folder, device="cpu")
    return postprocess(policy.predict_action_chunk(preprocess(observation()), noise))


def there(folder: Path, noise: torch.Tensor, tmp_path: Path, lerobot: LeRobot) -> torch.Tensor:
    torch.save({**observation(), "noise": noise}, tmp_path / "seen.pt")
    lerobot("-c", PREDICT, str(folder), str(tmp_path / "seen.pt"), str(tmp_path / "answer.pt"))
    answer: torch.Tensor = torch.load(tmp_path / "answer.pt")
    return answer


def test_what_lerobot_trained_opens_here_and_says_the_same(
    trained: tuple[str, Path], tmp_path: Path, lerobot: LeRobot
) -> None:
    kind, folder = trained
    assert json.loads((folder / "config.json").read_text())["type"] == kind
    noise = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(1))
    ours, theirs = here(folder, noise), there(folder, noise, tmp_path, lerobot)
    assert float((ours - theirs).norm() / ours.norm()) < 1e-5


def test_what_we_save_opens_in_lerobot_and_says_the_same(
    trained: tuple[str, Path], tmp_path: Path, lerobot: LeRobot
) -> None:
    kind, folder = trained
    policy, preprocess, postprocess = smolact.load_policy(folder, device="cpu")
    saved = tmp_path / "saved"
    for part in (policy, preprocess, postprocess):
        part.save_pretrained(saved)
    if kind == "smolvla_fast":
        saved = convert_checkpoint(saved, kind, tmp_path / "converted")
    noise = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(1))
    ours, theirs = here(saved, noise), there(saved, noise, tmp_path, lerobot)
    assert float((ours - theirs).norm() / ours.norm()) < 1e-5


def test_training_goes_on_in_lerobot(trained: tuple[str, Path], lerobot: LeRobot) -> None:
    _, folder = trained
    said = lerobot(
        "-m",
        "lerobot.scripts.lerobot_train",
        f"--config_path={folder / 'train_config.json'}",
        "--resume=true",
        "--steps=4",
    )
    assert (folder.parents[1] / "000004" / "pretrained_model" / "model.safetensors").is_file(), said[-2000:]


def said_in_json(said: str) -> dict[str, Any]:
    """The object that a script ends its output with."""
    lines = said.splitlines()
    first = max(number for number, line in enumerate(lines) if line.startswith("{"))
    last = max(number for number, line in enumerate(lines) if line.endswith("}"))
    found: dict[str, Any] = json.loads("\n".join(lines[first : last + 1]))
    return found


def test_lerobot_rollout_drives_an_arm_as_we_do(
    trained: tuple[str, Path], tmp_path: Path, lerobot: LeRobot
) -> None:
    kind, folder = trained
    script = Path(__file__).with_name("lerobot_rollout.py")
    found = said_in_json(lerobot(str(script), str(folder), str(tmp_path)))
    assert found["actions"] > 2
    assert found["moved"] > 1 or kind == "smolandfast"  # which says the same thing until it has learnt more
    assert found["from smolact's"] < 1e-5
    assert found["motors from actions"] <= 360 / 4095  # a motor's step


def pusht_policy(kind: str, folder: Path) -> Path:
    """A policy for PushT that has learnt nothing, by the name that LeRobot knows."""
    sizes: dict[str, Any] = {"chunk_size": 4, "n_action_steps": 2, "device": "cpu"}
    own: dict[str, Any] = {
        "vlm_model_name": "tiny",
        "resize_imgs_with_padding": (64, 64),
        "num_vlm_layers": 2,
    }
    if kind == "smolandfast":
        own = {"vlm_checkpoint": "tiny", "scale_factor": 2, "action_tokens": "bins"}
    config = get_config_class(kind)(
        input_features={
            "observation.image": PolicyFeature(FeatureType.VISUAL, (3, 96, 96)),
            "observation.state": PolicyFeature(FeatureType.STATE, (2,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (2,))},
        **sizes,
        **own,
    )
    torch.manual_seed(0)
    policy = make_policy(config, pretrained_vlm=False)
    numbers = {
        name: torch.full((2,), value)
        for name, value in (("mean", 256.0), ("std", 60.0), ("min", 100.0), ("max", 400.0))
    }
    for part in (
        policy,
        *make_pre_post_processors(policy, {"observation.state": numbers, "action": numbers}),
    ):
        part.save_pretrained(folder)
    return folder if kind == "smolandfast" else convert_checkpoint(folder, "smolvla_fast", folder / "fast")


@pytest.mark.parametrize("kind", ["smolvla", "smolandfast"])
def test_lerobot_eval_plays_the_same_episodes(kind: str, tmp_path: Path, lerobot: LeRobot) -> None:
    """PushT says no task, so LeRobot tells the policy nothing: which no policy may stumble over."""
    if "yes" not in lerobot(
        "-c", "import importlib.util as i; print('yes' if i.find_spec('gym_pusht') else 'no')"
    ):
        pytest.skip("LeRobot's Python has no gym-pusht (lerobot[pusht])")
    policy = pusht_policy(kind, tmp_path / "policy")
    words = [f"--checkpoint={policy}", f"--folder={tmp_path}", "--episodes=2", "--steps=8"]
    figures = tmp_path / "figures.json"
    lerobot(str(ROOT / "benchmarks" / "lerobot_eval.py"), *words, f"--output={figures}")
    found = json.loads(figures.read_text())
    assert len(found["runs"]["lerobot-eval, as it comes"]["max_rewards"]) == 2
    assert found["largest difference of an episode"]["max_rewards"] < 1e-6

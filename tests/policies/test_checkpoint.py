"""Checkpoints: LeRobot's open here, older ones too, and what was saved comes back."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import smolact
from smolact.errors import CheckpointError, ConfigError, NotFoundError, StatisticsError, WeightsError
from tests.parity.recipe import DATA, difference
from tests.policies.tiny import tiny_batch, tiny_noise, tiny_policy

FOLDER = DATA / "lerobot_checkpoint"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LeRobot's checkpoint with its weights in one file, as LeRobot wrote it; the repository keeps them in shards."""
    folder = tmp_path_factory.mktemp("lerobot") / "pretrained_model"
    shutil.copytree(FOLDER / "pretrained_model", folder, ignore=shutil.ignore_patterns("model*"))
    shards = sorted((FOLDER / "pretrained_model").glob("model-*.safetensors"))
    save_file(
        {key: value for shard in shards for key, value in load_file(shard).items()},
        folder / "model.safetensors",
    )
    return folder


def load(folder: Path, **overrides):
    return smolact.load_policy(folder, device="cpu", vlm_model_name=str(DATA / "tiny_vlm"), **overrides)


def inputs() -> tuple[dict, dict[str, torch.Tensor]]:
    from safetensors import safe_open

    with safe_open(FOLDER / "expected_pipeline.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        task = file.metadata()["task"]
    return {
        **{key[3:]: value for key, value in tensors.items() if key.startswith("in/")},
        "task": task,
    }, tensors


@pytest.mark.parametrize("sharded", [False, True])
def test_lerobots_checkpoint_predicts_as_there(checkpoint: Path, sharded: bool) -> None:
    policy, preprocess, postprocess = load(FOLDER / "pretrained_model" if sharded else checkpoint)
    observation, expected = inputs()
    batch = preprocess(observation)
    assert torch.equal(batch["observation.language.tokens"], expected["out/tokens"])
    assert torch.equal(batch["observation.language.attention_mask"], expected["out/token_mask"])
    assert difference(batch["observation.state"], expected["out/normalized_state"]) <= 1e-6
    chunk = policy.predict_action_chunk(batch, noise=expected["in/noise"])
    assert difference(chunk, expected["out/normalized_chunk"]) <= 1e-4
    assert difference(postprocess(chunk), expected["out/action_chunk"]) <= 1e-4


def test_parameters_have_the_numbers_that_lerobots_optimizer_state_knows_them_by(checkpoint: Path) -> None:
    policy = load(checkpoint).policy
    groups = json.loads((FOLDER / "training_state" / "optimizer_param_groups.json").read_text())
    assert groups[0]["params"] == list(range(len(list(policy.get_optim_params()))))
    names = [name for name, _ in policy.named_parameters()]
    attention = [name.split(".")[-2] for name in names if "vision_model.encoder.layers.0.self_attn" in name]
    assert attention[::2] == ["k_proj", "v_proj", "q_proj", "out_proj"]


def test_what_is_saved_comes_back(checkpoint: Path, tmp_path: Path) -> None:
    policy, preprocess, postprocess = load(checkpoint)
    for part in (policy, preprocess, postprocess):
        part.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in checkpoint.iterdir()} - {
        "train_config.json"
    } | {"vlm"}
    for name in ("policy_preprocessor.json", "policy_postprocessor.json"):
        before, after = (json.loads((folder / name).read_text()) for folder in (checkpoint, tmp_path))
        assert after == before
    assert (
        load_file(tmp_path / "model.safetensors").keys() == load_file(checkpoint / "model.safetensors").keys()
    )
    (config := json.loads((tmp_path / "config.json").read_text())).update(vlm_model_name="tiny_vlm")
    assert config == json.loads((checkpoint / "config.json").read_text())
    # It opens without the VLM's folder: the checkpoint keeps its configuration and tokenizer.
    (tmp_path / "config.json").write_text(json.dumps({**config, "vlm_model_name": "moved/away"}))
    again = smolact.load_policy(tmp_path, device="cpu")
    observation, expected = inputs()
    chunk = again.policy.predict_action_chunk(again.preprocess(observation), noise=expected["in/noise"])
    assert difference(again.postprocess(chunk), expected["out/action_chunk"]) <= 1e-4


def old_checkpoint(source: Path, folder: Path, prefix: str = "") -> Path:
    """A checkpoint as LeRobot wrote it before there were processor files."""
    folder.mkdir()
    shutil.copy(source / "config.json", folder)
    tensors = load_file(source / "model.safetensors")
    state = load_file(source / "policy_preprocessor_step_5_normalizer_processor.safetensors")
    for layer, feature in (
        ("normalize_inputs", "observation.state"),
        ("normalize_targets", "action"),
        ("unnormalize_outputs", "action"),
    ):
        for statistic in ("mean", "std"):
            name = f"{layer}.{prefix}buffer_{feature.replace('.', '_')}.{statistic}"
            tensors[name] = state[f"{feature}.{statistic}"].clone()
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_old_checkpoints_keep_their_statistics_in_the_weights(checkpoint: Path, tmp_path: Path) -> None:
    policy, preprocess, postprocess = load(old_checkpoint(checkpoint, tmp_path / "old"))
    observation, expected = inputs()
    chunk = policy.predict_action_chunk(preprocess(observation), noise=expected["in/noise"])
    assert difference(postprocess(chunk), expected["out/action_chunk"]) <= 1e-4


def test_an_old_checkpoint_without_statistics_opens_and_does_not_predict(
    checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copy(checkpoint / "config.json", tmp_path)
    shutil.copy(checkpoint / "model.safetensors", tmp_path)
    loaded = load(tmp_path)
    with pytest.raises(StatisticsError, match=r"'observation\.state'.*none of it.*--policy\.stats="):
        loaded.preprocess(inputs()[0])


def test_statistics_of_several_datasets_need_a_choice(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(checkpoint, folder)
    for path in folder.glob("*_step_*.safetensors"):
        state = load_file(path)
        keyed = {f"so100.buffer.{key}": value for key, value in state.items()}
        keyed |= {f"so100-red.buffer.{key}": value + 1 for key, value in state.items()}
        save_file(keyed, path)
    with pytest.raises(StatisticsError, match=r"--policy.stats_key=KEY; the keys are: so100, so100-red"):
        load(folder).preprocess(inputs()[0])
    with pytest.raises(StatisticsError, match=r"so101.*Did you mean 'so100'"):
        load(folder, stats_key="so101")
    policy, preprocess, postprocess = load(folder, stats_key="so100")
    observation, expected = inputs()
    chunk = policy.predict_action_chunk(preprocess(observation), noise=expected["in/noise"])
    assert difference(postprocess(chunk), expected["out/action_chunk"]) <= 1e-4


def test_weights_that_do_not_fit_are_listed(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"of another shape \(4\)[\s\S]*state_proj.weight: expected \(64, 9\), found"
    ):
        load(checkpoint, max_state_dim=9, max_action_dim=9)
    with pytest.raises(WeightsError, match=r"unexpected \(\d+\)[\s\S]*… and \d+ more"):
        load(checkpoint, num_vlm_layers=2)


def test_damaged_checkpoints_are_named(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint, folder)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"model.safetensors is damaged"):
        load(folder)
    (folder / "config.json").write_text('{"type": "smolvla",')
    with pytest.raises(CheckpointError, match=r"config.json is damaged: not valid JSON"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(NotFoundError, match=r"no config.json"):
        load(folder)
    with pytest.raises(NotFoundError, match=r"there is: .*copy/.*Did you mean 'copy'"):
        load(tmp_path / "coppy")
    (folder / "config.json").write_text('{"type": "smolvlm"}')
    with pytest.raises(ConfigError, match=r"no policy type 'smolvlm'.*Did you mean 'smolvla'"):
        load(folder)


def test_a_preset_policy_opens_without_the_hub(tmp_path: Path) -> None:
    policy = tiny_policy()
    policy.save_pretrained(tmp_path)
    again = type(policy).from_pretrained(tmp_path)
    assert torch.equal(
        again.predict_action_chunk(tiny_batch(), tiny_noise()),
        policy.predict_action_chunk(tiny_batch(), tiny_noise()),
    )
    assert [name for name, p in again.named_parameters() if p.requires_grad] == [
        name for name, p in policy.named_parameters() if p.requires_grad
    ]


def test_another_vlm_than_the_checkpoints_is_not_taken_silently(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tiny_policy()
    policy.save_pretrained(tmp_path / "checkpoint")
    with pytest.raises(WeightsError, match="of another shape"):
        type(policy).from_pretrained(tmp_path / "checkpoint", vlm_model_name="small")
    # A folder that happens to be called as the preset is not in its way.
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert type(policy).from_pretrained(tmp_path / "checkpoint").config.vlm_model_name == "tiny"


def test_loading_draws_no_numbers_that_are_thrown_away(checkpoint: Path) -> None:
    """Weights for the meta device would be drawn by torch's compiler, whose import takes longer than all the rest."""
    code = (
        "import sys, torch; state = torch.get_rng_state(); import smolact; "
        f"policy, *_ = smolact.load_policy({str(checkpoint)!r}, device='cpu', vlm_model_name={str(DATA / 'tiny_vlm')!r}); "
        "assert torch.equal(state, torch.get_rng_state()); assert not policy.model.state_proj.weight.is_meta; "
        "print('torch._dynamo' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"

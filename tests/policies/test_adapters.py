"""Adapters: what trains, what is saved, that it comes back, and that merging changes nothing that a robot would feel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from smolact.errors import CheckpointError, ConfigError, NotFoundError, WeightsError
from smolact.policies.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, ALL_LINEAR, AdapterSettings
from smolact.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from tests.policies.tiny import tiny_batch, tiny_noise, tiny_policy

peft = pytest.importorskip("peft", reason="peft is not installed (pip install 'smolact[peft]')")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_policy(num_vlm_layers=2).save_pretrained(folder)
    return folder


def adapted(base: Path, **settings: Any) -> SmolVLAPolicy:
    policy = SmolVLAPolicy.from_pretrained(base)
    torch.manual_seed(3)
    return policy.add_adapters(AdapterSettings(**{"r": 4, **settings}))


def trained(policy: SmolVLAPolicy, steps: int = 3) -> SmolVLAPolicy:
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=1e-2)
    noise, time = tiny_noise(), torch.tensor([0.3, 0.8])
    for step in range(steps):
        policy.forward(tiny_batch(seed=step), noise, time)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    return policy


def chunk(policy: SmolVLAPolicy) -> Tensor:
    return policy.eval().predict_action_chunk(tiny_batch(seed=9), tiny_noise())


def training(policy: SmolVLAPolicy) -> set[str]:
    return {name for name, parameter in policy.named_parameters() if parameter.requires_grad}


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_new_adapters_change_no_prediction_and_only_they_train(base: Path) -> None:
    plain = SmolVLAPolicy.from_pretrained(base)
    policy = adapted(base)
    assert torch.equal(chunk(policy), chunk(plain))
    assert training(policy)
    assert all(".lora_" in name for name in training(policy))
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    trained(policy)
    changed = {name for name, value in policy.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == training(policy)


def test_the_policys_own_layers_are_those_of_lerobot(base: Path) -> None:
    layers = {name.partition(".lora_")[0] for name in training(adapted(base))}
    expert = {
        f"model.vlm_with_expert.lm_expert.layers.{layer}.self_attn.{part}_proj"
        for layer in range(2)
        for part in "qv"
    }
    heads = ("state_proj", "action_in_proj", "action_out_proj", "action_time_mlp_in", "action_time_mlp_out")
    assert layers == expert | {f"model.{name}" for name in heads}


def test_a_round_trip_gives_the_same_bits_and_trains_on(base: Path, tmp_path: Path) -> None:
    policy = trained(adapted(base, full_training_modules=["action_out_proj"]))
    policy.save_pretrained(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["use_peft"], config["pretrained_path"]) == (True, str(base))
    loaded = SmolVLAPolicy.from_pretrained(tmp_path)
    assert torch.equal(chunk(loaded), chunk(policy))
    assert training(loaded) == training(policy)
    assert list(loaded.state_dict()) == list(policy.state_dict())
    trained(policy.train())
    trained(loaded.train())
    assert torch.equal(chunk(loaded), chunk(policy))


@pytest.mark.parametrize("full", [(), ("action_out_proj",)])
def test_merged_and_unmerged_predict_the_same(base: Path, tmp_path: Path, full: tuple[str, ...]) -> None:
    policy = trained(adapted(base, full_training_modules=full, lora_alpha=32))
    unmerged = chunk(policy)
    assert distance(chunk(SmolVLAPolicy.from_pretrained(base)), unmerged) > 1e-2
    merged = policy.merge_adapters()
    assert distance(chunk(merged), unmerged) < 1e-5
    plain = SmolVLAPolicy.from_pretrained(base)
    assert list(merged.state_dict()) == list(plain.state_dict())
    assert training(merged) == training(plain)
    assert not merged.config.use_peft
    merged.save_pretrained(tmp_path)
    assert torch.equal(chunk(SmolVLAPolicy.from_pretrained(tmp_path)), chunk(merged))


def test_modules_that_train_whole_do_and_have_no_adapter(base: Path) -> None:
    names = training(adapted(base, full_training_modules=["action_out_proj", "connector"]))
    whole = {name for name in names if ".lora_" not in name}
    assert whole == {
        "model.action_out_proj.weight",
        "model.action_out_proj.bias",
        "model.vlm_with_expert.vlm.model.connector.modality_projection.proj.weight",
    }
    assert not any("action_out_proj.lora" in name for name in names)


def test_adapters_in_frozen_parts_get_gradients(base: Path) -> None:
    policy = adapted(base, target_modules=["text_model.layers.0.self_attn.v_proj"])  # train_expert_only is on
    assert len(training(policy)) == 2
    before = chunk(policy)
    assert not torch.equal(chunk(trained(policy)), before)


def test_pefts_own_loader_opens_what_is_written(base: Path, tmp_path: Path) -> None:
    """As LeRobot does: the base first, then peft's wrapper around it."""
    policy = trained(adapted(base, full_training_modules=["action_out_proj"]))
    policy.save_pretrained(tmp_path)
    wrapped = peft.PeftModel.from_pretrained(SmolVLAPolicy.from_pretrained(base), str(tmp_path))
    assert torch.equal(chunk(wrapped.base_model.model), chunk(policy))


def test_what_pefts_own_wrapper_writes_is_opened(base: Path, tmp_path: Path) -> None:
    policy = SmolVLAPolicy.from_pretrained(base)
    config = peft.LoraConfig(
        r=4,
        target_modules=str(policy.adapter_targets),
        modules_to_save=["state_proj"],
        base_model_name_or_path=str(base),
        init_lora_weights=False,
    )
    policy.name_or_path = str(base)  # where peft looks for it, and LeRobot puts it
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(policy, config)
    wrapped.save_pretrained(str(tmp_path))
    policy.config.save_pretrained(tmp_path)
    loaded = SmolVLAPolicy.from_pretrained(tmp_path)
    assert torch.equal(chunk(loaded), chunk(policy))
    assert loaded.adapters is not None
    assert loaded.adapters.full == ("model.state_proj",)


def test_the_base_is_what_was_loaded_not_what_that_was_trained_from(base: Path, tmp_path: Path) -> None:
    SmolVLAPolicy.from_pretrained(base, pretrained_path="somebody/else").save_pretrained(tmp_path / "tuned")
    policy = adapted(tmp_path / "tuned")
    policy.save_pretrained(tmp_path / "adapters")
    data = json.loads((tmp_path / "adapters" / ADAPTER_CONFIG).read_text())
    assert data["base_model_name_or_path"] == str((tmp_path / "tuned").resolve())
    with pytest.raises(ConfigError, match="save this policy, and load it"):
        policy.merge_adapters().add_adapters(AdapterSettings())


def test_all_linear_leaves_the_output_layer_alone(base: Path) -> None:
    names = training(adapted(base, target_modules=ALL_LINEAR))
    assert any("vision_model" in name for name in names)
    assert not any("lm_head" in name for name in names)


def test_the_same_seed_gives_the_same_adapters(base: Path) -> None:
    one, other = (adapted(base, init_type="gaussian").state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 0}, "--peft.r=0 is too small"),
        ({"lora_alpha": 0}, "--peft.lora_alpha=0 is too small"),
        ({"init_type": "pissa"}, "--peft.init_type=pissa can't be used: expected gaussian or orthogonal"),
        ({"init_type": "orthogonal", "r": 3}, "needs an even rank"),
        (
            {"target_modules": ["q_pro"]},
            r"no module of this policy is named 'q_pro'\. Did you mean 'q_proj'\?",
        ),
        ({"target_modules": "("}, "is not a regular expression"),
        ({"target_modules": ".*embed_tokens"}, "which is a Embedding: adapters go into linear layers only"),
        ({"full_training_modules": ["heads"]}, "--peft.full_training_modules: no module"),
        (
            {"target_modules": ["state_proj"], "full_training_modules": ["state_proj"]},
            "all of it is in --peft.full_training_modules",
        ),
    ],
)
def test_settings_that_can_not_work_are_refused(base: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        adapted(base, **settings)


def test_adapters_need_a_base_and_are_added_once(base: Path) -> None:
    with pytest.raises(ConfigError, match=r"--policy\.path=FOLDER_OR_HUB_ID"):
        tiny_policy().add_adapters(AdapterSettings())
    with pytest.raises(ConfigError, match="has adapters already"):
        adapted(base).add_adapters(AdapterSettings())


def edited(folder: Path, **values: Any) -> None:
    path = folder / ADAPTER_CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_base_that_is_not_there_is_named(base: Path, tmp_path: Path) -> None:
    adapted(base).save_pretrained(tmp_path)
    edited(tmp_path, base_model_name_or_path=str(tmp_path / "gone"))
    with pytest.raises(
        NotFoundError, match=r"policy '.*gone', which is not there\. Write its present folder"
    ):
        SmolVLAPolicy.from_pretrained(tmp_path)
    edited(tmp_path, base_model_name_or_path=str(tmp_path))
    with pytest.raises(CheckpointError, match="holds adapters itself"):
        SmolVLAPolicy.from_pretrained(tmp_path)


def test_adapters_that_do_not_fit_are_refused(base: Path, tmp_path: Path) -> None:
    adapted(base).save_pretrained(tmp_path)
    edited(tmp_path, r=8)
    with pytest.raises(WeightsError, match="missing, left over or of another shape"):
        SmolVLAPolicy.from_pretrained(tmp_path)
    edited(tmp_path, r=4, target_modules=["nothing"])
    with pytest.raises(CheckpointError, match="does not fit this policy"):
        SmolVLAPolicy.from_pretrained(tmp_path)
    edited(tmp_path, peft_type="IA3")
    with pytest.raises(CheckpointError, match="is of IA3, expected the peft_type LORA"):
        SmolVLAPolicy.from_pretrained(tmp_path)
    (tmp_path / ADAPTER_CONFIG).write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        SmolVLAPolicy.from_pretrained(tmp_path)


def test_only_adapters_are_on_the_disk(base: Path, tmp_path: Path) -> None:
    policy = adapted(base)
    policy.save_pretrained(tmp_path)
    names = {
        name.removeprefix("base_model.model.").replace(".weight", ".default.weight")
        for name in load_file(tmp_path / ADAPTER_WEIGHTS)
    }
    assert names == training(policy)

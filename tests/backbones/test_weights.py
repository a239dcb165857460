"""Weights: all of them or an error; a VLM's own weights under a policy; presets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from smolact.backbones.config import SmolVLMConfig
from smolact.backbones.presets import PRESETS, PRESETS_WITH_WEIGHTS, find_vlm
from smolact.backbones.smolvlm import SmolVLM, patch_positions, pixel_shuffle
from smolact.backbones.weights import load_weights, read_tensors, weight_files
from smolact.errors import CheckpointError, ConfigError, HubError, NotFoundError, WeightsError
from smolact.policies.smolandfast.configuration_smolandfast import SMOLANDFASTConfig
from smolact.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from smolact.policies.summary import empty_policy
from tests.parity.recipe import DATA, draw_weights
from tests.policies.tiny import tiny_config


@pytest.fixture(scope="session")
def vlm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained VLM as the Hub gives it: configuration, tokenizer, sharded weights."""
    folder = tmp_path_factory.mktemp("vlm") / "vlm"
    shutil.copytree(DATA / "tiny_vlm", folder)
    model = SmolVLM(SmolVLMConfig.from_dict(json.loads((folder / "config.json").read_text())))
    draw_weights(model, 5)
    tensors = list(model.state_dict().items())
    shards = {f"model-{i + 1:05d}-of-00003.safetensors": dict(tensors[i::3]) for i in range(3)}
    for name, shard in shards.items():
        save_file(shard, folder / name)
    weight_map = {key: name for name, shard in shards.items() for key in shard}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_a_policy_begins_from_the_vlms_weights_and_builds_only_the_layers_that_it_uses(
    vlm_folder: Path,
) -> None:
    torch.manual_seed(0)
    policy = SmolVLAPolicy(
        tiny_config(vlm_model_name=str(vlm_folder), num_vlm_layers=2, load_vlm_weights=True)
    )
    expected = read_tensors(weight_files(vlm_folder))
    found = policy.model.vlm_with_expert.vlm.state_dict()
    assert not any("text_model.layers.2." in key for key in found)
    assert all(torch.equal(tensor, expected[key]) for key, tensor in found.items())
    assert {key for key in expected if key not in found} == {
        key for key in expected if "layers.2." in key or "layers.3." in key if "text_model" in key
    }


def test_a_preset_without_trained_weights_says_so() -> None:
    with pytest.raises(ConfigError, match=r"preset 'small' has no trained weights.*--policy.init=random"):
        SmolVLAPolicy(
            tiny_config(vlm_model_name="small", load_vlm_weights=True, resize_imgs_with_padding=(128, 128))
        )


def test_a_folder_without_weights_says_so() -> None:
    with pytest.raises(NotFoundError, match=r"no weights: expected model.safetensors"):
        SmolVLAPolicy(tiny_config(vlm_model_name=str(DATA / "tiny_vlm"), load_vlm_weights=True))


def test_weights_must_be_whole(vlm_folder: Path, tmp_path: Path) -> None:
    config = SmolVLMConfig.from_dict(json.loads((vlm_folder / "config.json").read_text()))
    tensors = read_tensors(weight_files(vlm_folder))
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1]
    tensors["left_over"] = torch.zeros(3)
    del tensors["model.text_model.norm.weight"]
    with pytest.raises(WeightsError) as caught:
        load_weights(SmolVLM(config), tensors, "here")
    for line in (
        "missing (1):",
        "model.text_model.norm.weight (64,)",
        "unexpected (1):",
        "left_over (3,)",
        "expected (512, 64), found (511, 64)",
    ):
        assert line in str(caught.value)


def test_a_folder_of_weights_is_read_safely(vlm_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(vlm_folder, folder)
    shard = folder / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003.safetensors is damaged"):
        read_tensors(weight_files(folder))
    shard.unlink()
    with pytest.raises(
        CheckpointError, match=r"names the shard 'model-00002-of-00003.safetensors', which is not in"
    ):
        weight_files(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "../../secret.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"names the shard"):
        weight_files(folder)
    index.write_text("[]")
    with pytest.raises(CheckpointError, match=r"index.json holds list"):
        weight_files(folder)
    index.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(NotFoundError, match=r"pytorch_model.bin is a pickle, which is never loaded"):
        weight_files(folder)


def test_weights_load_without_being_made_first(vlm_folder: Path) -> None:
    config = SmolVLMConfig.from_dict(json.loads((vlm_folder / "config.json").read_text()))
    with torch.device("meta"):
        model = SmolVLM(config).requires_grad_(False)
    load_weights(model, read_tensors(weight_files(vlm_folder)), vlm_folder)
    assert not any(p.requires_grad or p.is_meta for p in model.parameters())
    assert torch.isfinite(model(torch.tensor([[1, 5, 9]]))).all()


def test_tied_output_layers_stay_tied() -> None:
    raw = json.loads((DATA / "tiny_vlm" / "config.json").read_text())
    config = SmolVLMConfig.from_dict({**raw, "tie_word_embeddings": True})
    model = SmolVLM(config)
    tensors = {key: value for key, value in model.state_dict().items() if key != "lm_head.weight"}
    with torch.device("meta"):
        other = SmolVLM(config)
    load_weights(other, tensors, "here")
    assert other.lm_head.weight is other.model.text_model.embed_tokens.weight


@pytest.mark.parametrize(
    ("name", "millions"), [("smolvlm2-256m", 256), ("smolvlm2-500m", 507), ("smolvlm2-2.2b", 2247)]
)
def test_presets_have_the_published_sizes(name: str, millions: int) -> None:
    with torch.device("meta"):
        model = SmolVLM(find_vlm(name).config)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)


def test_smolvla_has_the_published_size() -> None:
    with torch.device("meta"):
        policy = SmolVLAPolicy(
            tiny_config(vlm_model_name="smolvlm2-500m", max_state_dim=32, max_action_dim=32)
        )
    assert sum(p.numel() for p in policy.parameters()) / 1e6 == pytest.approx(450, rel=0.01)


def test_vlms_are_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        NotFoundError, match=r"no VLM 'tinny': expected a preset \(tiny, small.*Did you mean 'tiny'"
    ):
        find_vlm("tinny")

    def offline(*args: object, **kwargs: object) -> Path:
        raise HubError("the Hub can't be reached")

    monkeypatch.setattr("smolact.backbones.presets.find_folder", offline)
    published = find_vlm("HuggingFaceTB/SmolVLM2-500M-Video-Instruct")
    assert published.config == find_vlm("smolvlm2-500m").config
    with pytest.raises(NotFoundError, match=r"tokenizer of .* is not here.*--policy.vlm_model_name=FOLDER"):
        published.tokenizer_folder()
    with pytest.raises(HubError):
        find_vlm("somebody/else")
    assert set(PRESETS) >= {"tiny", "small"}


@pytest.mark.parametrize("error", [HubError("the Hub can't be reached"), NotFoundError("no repository")])
def test_who_makes_a_new_policy_without_the_hub_hears_of_the_vlm_that_ships(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refused(*args: object, **kwargs: object) -> Path:
        raise error

    monkeypatch.setattr("smolact.backbones.presets.find_folder", refused)
    ships = r"ships with smolact: --policy\.vlm_model_name=tiny"
    with pytest.raises(type(error), match=rf"{error}.*{ships}"):
        SmolVLAPolicy(tiny_config(vlm_model_name="somebody/else", load_vlm_weights=True))
    with pytest.raises(type(error), match=r"ships with smolact: --policy\.vlm_checkpoint=tiny"):
        empty_policy(SMOLANDFASTConfig(vlm_checkpoint="somebody/else"))
    with pytest.raises(type(error)) as caught:
        find_vlm("somebody/else")  # as a checkpoint does, whose weights fit its own VLM alone
    assert "tiny" not in str(caught.value)
    if isinstance(error, HubError):
        published = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
        with pytest.raises(NotFoundError, match=rf"tokenizer of .*{ships}"):
            find_vlm(published, field="vlm_model_name").tokenizer_folder()


@pytest.mark.parametrize("name", PRESETS_WITH_WEIGHTS)
def test_a_preset_with_weights_has_all_of_them_and_a_card(name: str) -> None:
    source = find_vlm(name, weights=True)
    assert source.folder is not None
    load_weights(SmolVLM(source.config), read_tensors(weight_files(source.folder)), source.folder)
    assert (source.folder / "README.md").is_file()
    assert find_vlm(name).folder is None


def test_pixel_shuffle_gathers_each_block_of_patches() -> None:
    patches = torch.arange(4 * 6).reshape(1, 24, 1)
    packed = pixel_shuffle(patches, 4, 6, 2)
    assert packed.shape == (1, 6, 4)
    assert packed[0, 0].tolist() == [0, 1, 6, 7]
    assert packed[0, 5].tolist() == [16, 17, 22, 23]


@pytest.mark.parametrize("side", [8, 14, 27, 32])
def test_a_full_image_takes_the_positions_in_order(side: int) -> None:
    assert patch_positions(side, side, side, torch.device("cpu")).tolist() == list(range(side**2))
    half = patch_positions(side, side // 2, side, torch.device("cpu")).reshape(side, side // 2)
    assert half[0, 0] == 0 and half[-1, -1] < side**2


def test_configurations_of_both_transformers_generations_are_read() -> None:
    raw = json.loads((DATA / "tiny_vlm" / "config.json").read_text())
    new = SmolVLMConfig.from_dict(raw)
    text = {key: value for key, value in raw["text_config"].items() if key != "rope_parameters"}
    old = SmolVLMConfig.from_dict({**raw, "text_config": {**text, "rope_theta": 100_000.0}})
    assert old == new and new.text_config.rope_theta == 100_000 and new.image_tokens == 4
    with pytest.raises(ConfigError, match="model_type='llava'"):
        SmolVLMConfig.from_dict({**raw, "model_type": "llava"})
    with pytest.raises(ConfigError, match="rope_type='yarn'"):
        SmolVLMConfig.from_dict({**raw, "text_config": {**text, "rope_scaling": {"rope_type": "yarn"}}})

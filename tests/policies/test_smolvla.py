"""What SmolVLA does beyond the reference's numbers: settings that crash there, equal paths, kind errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from smolact.backbones import smolvlm
from smolact.errors import ConfigError, FeatureError
from smolact.policies.common.attention import block_mask
from smolact.policies.common.flow_matching import sample_time
from smolact.policies.smolvla.configuration_smolvla import SmolVLAConfig
from smolact.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from smolact.types import is_image_key
from tests.parity.recipe import difference, smolvla_case
from tests.policies.tiny import CAMERAS, tiny_batch, tiny_config, tiny_noise, tiny_policy


@pytest.mark.parametrize(
    "attention", [("cross_attn", 2), ("cross_attn", 3), ("cross_attn", -1), ("self_attn", 2)]
)
@pytest.mark.parametrize("expert_layers", [1, 2, 4])
def test_fewer_expert_layers_train_and_sample(attention: tuple[str, int], expert_layers: int) -> None:
    mode, every = attention
    policy = tiny_policy(
        num_vlm_layers=4,
        num_expert_layers=expert_layers,
        attention_mode=mode,
        self_attn_every_n_layers=every,
        train_expert_only=False,
        freeze_vision_encoder=False,
    )
    model = policy.model.vlm_with_expert
    assert model.read_layers == [index * (4 // expert_layers) for index in range(expert_layers)]
    expected = [
        mode == "cross_attn" and not (every > 0 and layer % every == 0) for layer in model.read_layers
    ]
    assert model.cross == expected
    vlm_key_width = 2 * 32  # of the preset: 2 key/value heads of 32
    for layer, crosses in zip(model.lm_expert.layers, model.cross, strict=True):
        assert layer.self_attn.k_proj.in_features == (vlm_key_width if crosses else model.expert_hidden_size)

    loss, _ = policy.forward(tiny_batch())
    loss.backward()
    # Each parameter that trains gets a gradient, and no other.
    for name, parameter in policy.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert torch.isfinite(policy.predict_action_chunk(tiny_batch())).all()


@pytest.mark.parametrize(
    "settings", [{}, {"num_expert_layers": 2}, {"attention_mode": "self_attn"}, {"prefix_length": 60}]
)
def test_cached_prefix_gives_the_same_actions(settings: dict) -> None:
    cached, uncached = tiny_policy(**settings), tiny_policy(use_cache=False, **settings)
    batch, noise = tiny_batch(), tiny_noise()
    slow = uncached.predict_action_chunk(batch, noise)
    assert difference(cached.predict_action_chunk(batch, noise), slow) <= 1e-5


def test_one_sample_alone_gives_what_it_gives_in_a_batch() -> None:
    policy, batch, noise = tiny_policy(), tiny_batch(3), tiny_noise(3)
    together = policy.predict_action_chunk(batch, noise)
    for index in range(3):
        alone = policy.predict_action_chunk(
            {key: value[index : index + 1] for key, value in batch.items()}, noise[index : index + 1]
        )
        assert difference(alone[0], together[index]) <= 1e-5


def test_what_is_padded_or_masked_does_not_matter() -> None:
    policy, batch, noise = tiny_policy(empty_cameras=1), tiny_batch(), tiny_noise()
    chunk = policy.predict_action_chunk(batch, noise)
    changed = {**batch, "observation.language.tokens": batch["observation.language.tokens"].clone()}
    changed["observation.language.tokens"][1, 4:] = 9  # beyond the second instruction's end
    assert difference(policy.predict_action_chunk(changed, noise), chunk) <= 1e-6
    without = tiny_policy()
    without.load_state_dict(policy.state_dict())
    assert difference(without.predict_action_chunk(batch, noise), chunk) <= 1e-5


def test_images_keep_their_size_without_resizing(tmp_path: Path) -> None:
    policy = tiny_policy(resize_imgs_with_padding=None)
    batch = tiny_batch()
    batch[CAMERAS[1]] = torch.rand(2, 3, 32, 80)  # cameras may differ
    chunk = policy.predict_action_chunk(batch, tiny_noise())
    assert torch.isfinite(chunk).all()
    policy.save_pretrained(tmp_path)
    again = SmolVLAPolicy.from_pretrained(tmp_path)
    assert again.config.resize_imgs_with_padding is None
    assert torch.equal(again.predict_action_chunk(batch, tiny_noise()), chunk)
    with pytest.raises(FeatureError, match=r"3×8 patches.*scale_factor=2.*resize_imgs_with_padding"):
        policy.predict_action_chunk({**batch, CAMERAS[1]: torch.rand(2, 3, 24, 64)}, tiny_noise())


def test_pictures_that_pass_the_tower_in_parts_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy(train_expert_only=False, freeze_vision_encoder=False)
    tower = policy.model.vlm_with_expert.vlm.model
    times = torch.tensor([0.2, 0.4, 0.6, 0.8, 1.0])
    passes = []
    whole = type(tower)._embed
    monkeypatch.setattr(type(tower), "_embed", lambda self, pixels: passes.append(len(pixels)) or whole(self, pixels))  # fmt: skip
    found = []
    for room in (smolvlm.CACHED, 3 * 64 * 256 * 4):  # of three pictures of 64 patches, 256 wide
        monkeypatch.setattr(smolvlm, "CACHED", room)
        loss, _ = policy.forward(tiny_batch(5), tiny_noise(5), times)
        loss.backward()
        found.append((loss.detach(), {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}))
        policy.zero_grad(set_to_none=True)
    assert passes == [10, 3, 3, 3, 1]
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


def test_uint8_images_are_the_same_pictures() -> None:
    policy, batch, noise = tiny_policy(), tiny_batch(), tiny_noise()
    bytes_ = {camera: (batch[camera] * 255).round().to(torch.uint8) for camera in CAMERAS}
    floats = {camera: image.float() / 255 for camera, image in bytes_.items()}
    assert torch.equal(
        policy.predict_action_chunk({**batch, **bytes_}, noise),
        policy.predict_action_chunk({**batch, **floats}, noise),
    )


def test_select_action_hands_out_n_action_steps_of_each_chunk() -> None:
    policy, batch = tiny_policy(), tiny_batch()
    first, second = tiny_noise(seed=3), tiny_noise(seed=4)
    chunks = [policy.predict_action_chunk(batch, noise) for noise in (first, second)]
    actions = [policy.select_action(batch, first) for _ in range(4)] + [policy.select_action(batch, second)]
    assert torch.equal(torch.stack(actions[:4], dim=1), chunks[0][:, :4])
    assert torch.equal(actions[4], chunks[1][:, 0])
    policy.reset()
    assert torch.equal(policy.select_action(batch, first), chunks[0][:, 0])


def test_bfloat16_stays_near_float32() -> None:
    policy, batch, noise = tiny_policy(), tiny_batch(), tiny_noise()
    exact = policy.predict_action_chunk(batch, noise)
    rounded = policy.to(torch.bfloat16).predict_action_chunk(batch, noise)
    assert rounded.dtype == torch.float32
    assert difference(rounded, exact) <= 2e-2


def test_training_lowers_the_loss() -> None:
    policy, batch = tiny_policy(train_expert_only=False, freeze_vision_encoder=False), tiny_batch()
    noise, time = tiny_noise(), torch.tensor([0.3, 0.8])
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=1e-3)
    losses = []
    for _ in range(30):
        loss, _ = policy.forward(batch, noise, time)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize(
    "settings", [{}, {"attention_mode": "self_attn"}, {"num_expert_layers": 2}, {"prefix_length": 40}]
)
def test_what_is_frozen_is_run_without_gradients_and_those_of_the_rest_are_the_same(
    settings: dict[str, Any],
) -> None:
    policy, batch, noise = tiny_policy(train_expert_only=True, **settings), tiny_batch(), tiny_noise()
    time = torch.tensor([0.3, 0.8])

    def gradients(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        policy.zero_grad()
        policy.forward(batch, noise, time)[0].backward()
        return {name: w.grad.clone() for name, w in policy.named_parameters() if w.grad is not None}

    quick = gradients(batch)
    images = {key: value.clone().requires_grad_() for key, value in batch.items() if is_image_key(key)}
    whole = gradients({**batch, **images})  # who asks for gradients of pictures gets them, by the long way
    assert all(image.grad is not None and image.grad.abs().max() > 0 for image in images.values())
    assert quick.keys() == whole.keys() and "model.state_proj.weight" in quick
    for name, gradient in whole.items():
        assert difference(quick[name], gradient) <= 1e-5, name


def test_times_are_drawn_as_the_reference_draws_them() -> None:
    times = sample_time(200_000, "cpu", torch.Generator().manual_seed(0))
    beta = torch.distributions.Beta(1.5, 1.0)
    assert 0.001 < float(times.min()) < float(times.max()) <= 1.0
    assert float(times.mean()) == pytest.approx(0.999 * float(beta.mean) + 0.001, abs=2e-3)
    assert float(times.var()) == pytest.approx(0.999**2 * float(beta.variance), abs=1e-3)


def test_a_padding_token_is_seen_by_nobody_and_sees_somebody() -> None:
    valid = torch.tensor([[True, True, False, True]])
    mask = block_mask(valid, torch.tensor([False, False, False, True]))
    assert mask.tolist() == [[[True, True, False, False]] * 3 + [[True, True, False, True]]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_obs_steps": 2}, r"n_obs_steps=2.*one observation"),
        ({"n_action_steps": 9}, r"n_action_steps=9 is more than chunk_size=8.*--policy.n_action_steps"),
        ({"attention_mode": "both"}, r"attention_mode='both'.*cross_attn or self_attn"),
        (
            {"num_vlm_layers": 4, "num_expert_layers": 3},
            r"num_expert_layers=3 does not divide num_vlm_layers=4",
        ),
        (
            {"empty_cameras": -1},
            r"empty_cameras=-1: expected a whole number, 0 to 32. Set --policy.empty_cameras",
        ),
        ({"num_steps": 0}, r"num_steps=0: expected a whole number, 1 to 1000"),
        ({"use_delta_joint_actions_aloha": True}, r"not supported"),
    ],
)
def test_settings_that_can_not_work_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_config(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resize_imgs_with_padding": (7, 7)}, r"one token of 16×16 pixels.*multiples of 16"),
        ({"resize_imgs_with_padding": (64, 72)}, r"multiples of 16"),
        ({"expert_width_multiplier": 0.3359375}, r"expert of width 43.*even width"),
        ({"expert_width_multiplier": 0.001}, r"expert of width 0"),
    ],
)
def test_sizes_that_do_not_fit_the_vlm_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_policy(**settings)


def test_missing_inputs_are_named() -> None:
    policy, batch = tiny_policy(), tiny_batch()
    with pytest.raises(FeatureError, match=r"none of the policy's cameras.*--rename_map"):
        policy.predict_action_chunk({key: value for key, value in batch.items() if key not in CAMERAS})
    with pytest.raises(FeatureError, match=r"'observation.language.tokens'.*preprocessor"):
        policy.predict_action_chunk({key: value for key, value in batch.items() if "tokens" not in key})
    with pytest.raises(FeatureError, match=r"shape \(batch, 8, 6\), found nothing.*delta_timestamps"):
        policy.forward({key: value for key, value in batch.items() if key != "action"})
    with pytest.raises(FeatureError, match=r"'action_is_pad' has the shape \(8,\).*collate"):
        policy.forward({**batch, "action_is_pad": torch.zeros(8, dtype=torch.bool)})
    with pytest.raises(FeatureError, match=r"state has 9 values.*up to 8"):
        policy.predict_action_chunk({**batch, "observation.state": torch.zeros(2, 9)})


def test_configuration_keeps_what_it_does_not_know(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = {**tiny_config().to_dict(), "from_the_future": [1, 2]}
    config = SmolVLAConfig.from_dict(data)
    assert "from_the_future" in caplog.text
    config.replace(num_steps=4).save_pretrained(tmp_path)
    again = SmolVLAConfig.from_pretrained(tmp_path, chunk_size=6)
    assert again.to_dict() == {**data, "num_steps": 4, "chunk_size": 6}
    with pytest.raises(ConfigError, match=r"no setting 'chunksize'.*Did you mean 'chunk_size'"):
        config.replace(chunksize=3)
    with pytest.raises(ConfigError, match=r"chunk_size: expected int, found 'many'"):
        SmolVLAConfig.from_dict({**data, "chunk_size": "many"})
    with pytest.raises(ConfigError, match=r"tags: expected .*, found 3"):
        SmolVLAConfig.from_dict({**data, "tags": 3})
    with pytest.raises(ConfigError, match=r"'pi0' policy, expected 'smolvla'"):
        SmolVLAConfig.from_dict({**data, "type": "pi0"})


def test_names_and_defaults_are_those_of_the_field() -> None:
    """What guides to SmolVLA tell their readers to look for and to change."""
    from smolact.policies.smolvla.modeling_smolvla import VLAFlowMatching
    from smolact.policies.smolvla.processor_smolvla import (
        SmolVLANewLineProcessor,
        TokenizerProcessorStep,
        make_smolvla_pre_post_processors,
    )
    from smolact.policies.smolvla.smolvlm_with_expert import SmolVLMWithExpertModel

    methods = {
        SmolVLAPolicy: "forward select_action predict_action_chunk reset prepare_images _get_action_chunk",
        VLAFlowMatching: "forward embed_prefix embed_suffix sample_actions denoise_step _forward_flow_matching",
        SmolVLMWithExpertModel: "forward embed_image embed_language_tokens forward_attn_layer forward_cross_attn_layer",
    }
    for owner, names in methods.items():
        assert all(callable(getattr(owner, name)) for name in names.split())
    assert SmolVLANewLineProcessor.registry_name == "smolvla_new_line_processor"
    assert TokenizerProcessorStep.registry_name == "tokenizer_processor"
    assert callable(make_smolvla_pre_post_processors)

    defaults = {
        "optimizer_lr": 1e-4, "optimizer_betas": (0.9, 0.95), "optimizer_eps": 1e-8, "optimizer_weight_decay": 1e-10,
        "optimizer_grad_clip_norm": 10, "scheduler_warmup_steps": 1_000, "scheduler_decay_steps": 30_000,
        "scheduler_decay_lr": 2.5e-6, "n_obs_steps": 1, "chunk_size": 50, "n_action_steps": 50, "max_state_dim": 32,
        "max_action_dim": 32, "resize_imgs_with_padding": (512, 512), "num_expert_layers": -1, "num_vlm_layers": 16,
        "vlm_model_name": "HuggingFaceTB/SmolVLM2-500M-Video-Instruct", "self_attn_every_n_layers": 2,
        "expert_width_multiplier": 0.75, "attention_mode": "cross_attn", "freeze_vision_encoder": True,
        "train_expert_only": True, "train_state_proj": True, "tokenizer_max_length": 48, "pad_language_to": "longest",
        "push_to_hub": False,
    }  # fmt: skip
    config = SmolVLAConfig()
    assert {name: getattr(config, name) for name in defaults} == defaults
    assert config.to_dict().keys() == set(smolvla_case("default")[1])

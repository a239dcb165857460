"""The engine gives what the policy gives, whatever the shapes and the settings; and never what it gave before."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import smolact
from smolact.errors import ConfigError, FeatureError
from smolact.policies.inference.decoder import attend_folded, folded_bias
from smolact.policies.inference.packing import Int8PackedLinear
from smolact.policies.smolvla.configuration_smolvla import SmolVLAConfig
from smolact.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from smolact.types import FeatureType, PolicyFeature
from tests.cuda_standin import CudaStandin, RealCuda
from tests.parity.recipe import DATA, difference, draw_weights, smolvla_batch, smolvla_case
from tests.policies.tiny import CAMERAS, tiny_batch, tiny_noise, tiny_policy

CASES = sorted(path.name for path in (DATA / "smolvla").iterdir())
TOKENS, MASK, STATE = (
    f"observation.{name}" for name in ("language.tokens", "language.attention_mask", "state")
)


def both_ways(policy: SmolVLAPolicy, batch: dict[str, Any], noise: Tensor, **settings: Any) -> list[float]:
    """How far the engine is from the policy: in one go, and observing first."""
    expected = policy.predict_action_chunk(batch, noise)
    engine = policy.build_engine(**{"dtype": torch.float32, **settings})
    at_once = engine.predict_action_chunk(batch, noise)
    engine.observe({key: value for key, value in batch.items() if key != STATE})
    later = engine.act({STATE: batch[STATE]}, noise)
    again = engine.predict_action_chunk(batch, noise)
    assert torch.equal(at_once, again)
    assert at_once.shape == expected.shape
    return [difference(found, expected) for found in (at_once, later)]


@pytest.mark.parametrize("name", CASES)
def test_every_parity_case_is_the_policys(name: str) -> None:
    case, config = smolvla_case(name)
    policy = SmolVLAPolicy(SmolVLAConfig.from_dict(config)).eval()
    draw_weights(policy, case["seed"])
    batch = smolvla_batch(case, config)
    noise = batch.pop("noise")
    assert max(both_ways(policy, batch, noise)) <= 1e-5
    assert max(both_ways(policy, batch, noise, dtype=torch.bfloat16)) <= 1e-2


VARIANTS: list[dict[str, Any]] = [
    *(
        {"num_vlm_layers": 4, "num_expert_layers": layers, "attention_mode": mode, "self_attn_every_n_layers": every}
        for layers in (1, 2, 4)
        for mode, every in (("cross_attn", 2), ("cross_attn", 3), ("cross_attn", -1), ("self_attn", 2))
    ),
    {"num_vlm_layers": 1},
    {"prefix_length": 60},
    {"prefix_length": 5},
    {"empty_cameras": 2},
    {"empty_cameras": 1, "add_image_special_tokens": True},
    {"add_image_special_tokens": True, "prefix_length": 70},
    {"resize_imgs_with_padding": None},
    {"resize_imgs_with_padding": (96, 32)},
    {"expert_width_multiplier": 0.5},
    {"expert_width_multiplier": 1.25, "attention_mode": "self_attn"},
    {"use_cache": False},
    {"num_steps": 3},
    {"min_period": 0.1, "max_period": 1.0},
    {"relative_step": 0.2},
]  # fmt: skip


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_every_setting_gives_what_the_policy_gives(settings: dict[str, Any]) -> None:
    assert max(both_ways(tiny_policy(**settings), tiny_batch(), tiny_noise())) <= 1e-5


def _changed(**changes: Any) -> dict[str, Any]:
    return {**tiny_batch(), **changes}


BATCHES: dict[str, dict[str, Any]] = {
    "one sample": tiny_batch(1),
    "three samples": tiny_batch(3),
    "bytes": _changed(**{camera: (tiny_batch()[camera] * 255).byte() for camera in CAMERAS}),
    "several frames": _changed(**{camera: tiny_batch()[camera][:, None] for camera in CAMERAS}),
    "a state with a time": _changed(**{STATE: tiny_batch()[STATE][:, None]}),
    "one camera": {key: value for key, value in tiny_batch().items() if key != CAMERAS[0]},
    "cameras of two sizes": _changed(**{CAMERAS[0]: torch.rand(2, 3, 30, 90)}),
    "a camera that is sometimes black": _changed(**{f"{CAMERAS[1]}_padding_mask": torch.tensor([True, False])}),
    "instructions with padding": _changed(**{TOKENS: torch.arange(24).view(2, 12), MASK: torch.arange(12) < torch.tensor([[3], [6]])}),
    "an instruction of which a word is hidden": _changed(**{MASK: torch.tensor([[1, 0, 1, 1, 0, 0, 0], [1] * 7]).bool()}),
    "no instruction": _changed(**{MASK: torch.zeros(2, 7, dtype=torch.bool)}),
}  # fmt: skip


@pytest.mark.parametrize("name", BATCHES)
def test_every_batch_gives_what_the_policy_gives(name: str) -> None:
    batch = BATCHES[name]
    size = len(batch[STATE])
    policy = tiny_policy(empty_cameras=1, add_image_special_tokens=True)
    assert max(both_ways(policy, batch, tiny_noise(size))) <= 1e-5


def test_cameras_without_resizing_may_differ() -> None:
    policy = tiny_policy(resize_imgs_with_padding=None)
    batch = _changed(**{CAMERAS[1]: torch.rand(2, 3, 32, 80)})
    assert max(both_ways(policy, batch, tiny_noise())) <= 1e-5
    with pytest.raises(FeatureError, match=r"3×8 patches.*scale_factor=2"):
        policy.build_engine().predict_action_chunk(
            {**batch, CAMERAS[1]: torch.rand(2, 3, 24, 64)}, tiny_noise()
        )


def test_one_engine_serves_all_shapes_in_any_order() -> None:
    policy = tiny_policy()
    engine = policy.build_engine(dtype=torch.float32)
    batches = [batch for batch in BATCHES.values() if CAMERAS[0] in batch]
    for batch in [*batches, *reversed(batches)]:
        noise = tiny_noise(len(batch[STATE]), seed=5)
        found = engine.predict_action_chunk(batch, noise)
        assert difference(found, policy.predict_action_chunk(batch, noise)) <= 1e-5


def test_a_new_task_or_picture_of_the_same_shape_is_seen() -> None:
    policy = tiny_policy()
    engine = policy.build_engine(dtype=torch.float32)
    batch, noise = tiny_batch(), tiny_noise()
    for key in (TOKENS, MASK, STATE, *CAMERAS):
        engine.predict_action_chunk(batch, noise)
        changed = {**batch, key: tiny_batch(seed=8)[key] if key != MASK else batch[MASK].flip(0)}
        found = engine.predict_action_chunk(changed, noise)
        assert difference(found, policy.predict_action_chunk(changed, noise)) <= 1e-5, key
        assert difference(found, policy.predict_action_chunk(batch, noise)) > 1e-5, key


@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun"])
def test_steps_and_solvers_are_those_of_the_policys_sampler(solver: str) -> None:
    policy, batch, noise = tiny_policy(), tiny_batch(), tiny_noise()
    engine = policy.build_engine(dtype=torch.float32)
    for steps in (1, 4):
        policy.config.num_steps = steps
        with torch.no_grad():
            inputs = policy._inputs(batch)
            sampled = policy.model.sample_actions(*inputs, noise=noise, solver=solver)[..., :6]
        engine.use_steps(steps, solver)
        assert difference(engine.predict_action_chunk(batch, noise), sampled) <= 1e-5


def test_solvers_of_second_order_are_nearer_to_the_end_of_the_way() -> None:
    from smolact.policies.common.flow_matching import integrate

    def velocity(x: Tensor, time: float) -> Tensor:
        return x * time  # x(t) = x(1) exp((t² - 1) / 2)

    start = torch.ones(1, 1, 1, dtype=torch.float64)
    exact = torch.exp(torch.tensor(-0.5, dtype=torch.float64))
    for solver, order in (("euler", 1), ("midpoint", 2), ("heun", 2)):
        coarse, fine = (float((integrate(velocity, start, n, solver) - exact).abs()) for n in (16, 32))
        assert coarse / fine == pytest.approx(2**order, rel=0.1), solver


def test_the_queue_and_the_draws_are_the_policys() -> None:
    policy, batch = tiny_policy(), tiny_batch()
    engine = policy.build_engine(dtype=torch.float32)
    torch.manual_seed(3)
    expected = torch.stack([policy.select_action(batch) for _ in range(6)])
    torch.manual_seed(3)
    found = torch.stack([engine.select_action(batch) for _ in range(6)])
    assert difference(found, expected) <= 1e-5
    engine.reset()
    first = engine.select_action(batch, tiny_noise())
    assert difference(first, policy.predict_action_chunk(batch, tiny_noise())[:, 0]) <= 1e-5


def test_weights_that_change_are_noticed(caplog: pytest.LogCaptureFixture) -> None:
    policy, batch, noise = tiny_policy(), tiny_batch(), tiny_noise()
    engine = policy.build_engine(dtype=torch.float32)

    def train() -> None:
        policy.forward(batch, noise, torch.tensor([0.3, 0.8]))[0].backward()
        torch.optim.AdamW(policy.get_optim_params(), lr=1e-2).step()

    def load() -> None:
        policy.load_state_dict(tiny_policy(seed=7).state_dict())

    def assign() -> None:
        policy.load_state_dict(tiny_policy(seed=8).state_dict(), assign=True)

    def one_layer() -> None:
        with torch.no_grad():
            policy.model.vlm_with_expert.lm_expert.layers[0].mlp.up_proj.weight.mul_(3)

    caplog.set_level(logging.INFO)
    for change in (train, load, assign, one_layer, lambda: policy.double().float()):
        old = engine.predict_action_chunk(batch, noise)
        engine.observe(batch)
        caplog.clear()
        change()
        with pytest.raises(FeatureError, match=r"engine\.observe"):  # what was observed, the old weights saw
            engine.act(batch, noise)
        assert "packing them anew" in caplog.text
        found = engine.predict_action_chunk(batch, noise)
        assert difference(found, policy.predict_action_chunk(batch, noise)) <= 1e-5
        assert change.__name__ == "<lambda>" or difference(found, old) > 1e-4
    caplog.clear()
    engine.predict_action_chunk(batch, noise)
    assert not caplog.records
    for parameter in policy.parameters():  # behind autograd's back: not noticed, as is said
        parameter.data.mul_(1.5)
    engine.refresh()
    found = engine.predict_action_chunk(batch, noise)
    assert difference(found, policy.predict_action_chunk(batch, noise)) <= 1e-5


def test_adapters_are_in_the_engine_and_the_policy_keeps_them(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="peft is not installed (pip install 'smolact[peft]')")
    from smolact.policies.adapters import AdapterSettings

    tiny_policy().save_pretrained(tmp_path)
    policy = SmolVLAPolicy.from_pretrained(tmp_path)
    batch, noise = tiny_batch(), tiny_noise()
    engine = policy.build_engine(dtype=torch.float32)
    plain = engine.predict_action_chunk(batch, noise)
    policy.add_adapters(AdapterSettings(r=4, target_modules="all-linear"))
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=1e-2)
    for _ in range(3):
        policy.forward(batch, noise, torch.tensor([0.3, 0.8]))[0].backward()
        optimizer.step()
    expected = policy.predict_action_chunk(batch, noise)
    assert difference(expected, plain) > 1e-3
    assert difference(engine.predict_action_chunk(batch, noise), expected) <= 1e-5
    assert policy.adapters is not None
    assert torch.equal(policy.predict_action_chunk(batch, noise), expected)
    merged = policy.merge_adapters().predict_action_chunk(batch, noise)
    assert difference(engine.predict_action_chunk(batch, noise), merged) <= 1e-5


def test_a_released_policy_gives_its_memory_and_says_so() -> None:
    policy, batch, noise = tiny_policy(), tiny_batch(), tiny_noise()
    expected = policy.predict_action_chunk(batch, noise)
    weights = sum(parameter.nbytes for parameter in policy.parameters())
    beside = policy.build_engine(dtype=torch.float32)
    assert 0 < beside.memory < 0.7 * weights  # what is not fused is the policy's own
    engine = policy.build_engine(dtype=torch.float32, release=True)
    assert all(parameter.is_meta for parameter in policy.parameters())
    assert engine.memory <= weights
    assert difference(engine.predict_action_chunk(batch, noise), expected) <= 1e-5
    for call in (engine.refresh, policy.build_engine, lambda: beside.predict_action_chunk(batch, noise)):
        with pytest.raises(ConfigError, match=r"release=True.*Load it again"):
            call()


def test_int8_is_near_and_rounds_rows_and_outputs_apart() -> None:
    policy, batch, noise = tiny_policy(), tiny_batch(), tiny_noise()
    engine = policy.build_engine(int8=True)
    weights = sum(parameter.nbytes for parameter in policy.parameters())
    assert 0 < engine.memory < 0.3 * weights
    assert max(both_ways(policy, batch, noise, int8=True)) <= 5e-2
    assert (
        difference(engine.predict_action_chunk(batch, noise), policy.predict_action_chunk(batch, noise))
        > 1e-4
    )
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(3, 5, 64, generator=generator), torch.randn(48, 64, generator=generator)
    bias = torch.randn(48, generator=generator)
    x[0, 0], weight[7], x[1, 1] = x[0, 0] * 1e4, weight[7] * 1e-3, 0
    exact = torch.nn.functional.linear(x, weight, bias)
    rounded = Int8PackedLinear(weight, bias)(x)
    assert difference(rounded, exact) <= 2e-2
    assert difference(rounded[1:], exact[1:]) <= 2e-2  # the large row costs the others nothing
    assert difference(rounded[2, :, 7], exact[2, :, 7]) <= 2e-2
    assert torch.allclose(rounded[1, 1], bias)


@pytest.mark.parametrize("shape", [(2, 6, 5, 9, 2), (1, 12, 64, 300, 4), (1, 3, 200, 100, 3)])
def test_attention_shares_key_heads_without_copies_of_them(shape: tuple[int, ...]) -> None:
    batch, heads, length, seen, key_heads = shape
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(batch, heads, length, 16, generator=generator)
    keys, values = torch.randn(2, batch, key_heads, seen, 16, generator=generator)
    mask = torch.rand(batch, length, seen, generator=generator) < 0.7
    for hidden in (None, mask):
        bias = None if hidden is None else folded_bias(hidden, heads // key_heads, torch.float32)
        expected = torch.nn.functional.scaled_dot_product_attention(
            queries, keys, values, None if hidden is None else hidden[:, None], enable_gqa=True
        )
        assert difference(attend_folded(queries, keys, values, bias), expected) <= 1e-6


def test_inference_mode_of_a_caller_changes_nothing() -> None:
    policy, batch, noise = tiny_policy(), tiny_batch(), tiny_noise()
    engine = policy.build_engine(dtype=torch.float32)
    with torch.inference_mode():
        inside = engine.predict_action_chunk(
            {key: value.clone() for key, value in batch.items()}, noise.clone()
        )
    assert torch.equal(engine.predict_action_chunk(batch, noise), inside)
    assert not engine.predict_action_chunk(batch, noise).requires_grad


def test_what_can_not_work_is_refused() -> None:
    policy, batch = tiny_policy(), tiny_batch()
    for settings, message in (
        ({"num_steps": 0}, r"num_steps=0: expected at least 1"),
        ({"solver": "rk4"}, r"solver='rk4': expected one of euler, midpoint, heun"),
        ({"dtype": torch.float16}, r"expected torch\.float32 or torch\.bfloat16"),
        ({"dtype": torch.bfloat16, "int8": True}, r"int8=True works with dtype=torch\.float32"),
        ({"graphs": True}, r"graphs=True needs a CUDA device"),
    ):
        with pytest.raises(ConfigError, match=message):
            policy.build_engine(**settings)
    engine = policy.build_engine()
    with pytest.raises(FeatureError, match=r"none of the policy's cameras.*--rename_map"):
        engine.predict_action_chunk({key: value for key, value in batch.items() if key not in CAMERAS})
    with pytest.raises(FeatureError, match=r"'observation.language.tokens'.*preprocessor"):
        engine.predict_action_chunk({key: value for key, value in batch.items() if key != TOKENS})
    with pytest.raises(FeatureError, match=r"state has 9 values.*up to 8"):
        engine.predict_action_chunk({**batch, STATE: torch.zeros(2, 9)})
    with pytest.raises(FeatureError, match=r"noise of shape \(2, 8, 8\).*found \(1, 8, 8\)"):
        engine.predict_action_chunk(batch, tiny_noise(1))
    with pytest.raises(FeatureError, match=r"not of one batch"):
        engine.predict_action_chunk({**batch, CAMERAS[0]: torch.rand(1, 3, 48, 64)})


def test_aloha_joints_are_converted_there_and_back() -> None:
    features = {
        "input_features": {CAMERAS[0]: PolicyFeature(FeatureType.VISUAL, (3, 48, 64)), STATE: PolicyFeature(FeatureType.STATE, (14,))},
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (14,))},
    }  # fmt: skip
    policy = tiny_policy(adapt_to_pi_aloha=True, max_state_dim=14, max_action_dim=14, **features)
    batch = _changed(**{STATE: torch.rand(2, 14)})
    assert max(both_ways(policy, batch, torch.randn(2, 8, 14))) <= 1e-5


def test_warming_up_needs_no_batch_and_draws_nothing() -> None:
    engine = tiny_policy(empty_cameras=1).build_engine()
    before = torch.get_rng_state()
    engine.warm_up()
    engine.warm_up(tiny_batch(3))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_checkpoint_opens_as_an_engine(tmp_path: Path) -> None:
    from smolact.policies.factory import make_pre_post_processors

    policy = tiny_policy()
    stats = {
        key: {"mean": torch.arange(6.0), "std": torch.arange(6.0) + 1}
        for key in ("observation.state", "action")
    }
    for part in (policy, *make_pre_post_processors(policy, stats)):
        part.save_pretrained(tmp_path)
    batch = {
        **{key: value[0] for key, value in tiny_batch().items() if key in (*CAMERAS, STATE)},
        "task": "push it",
    }
    slow, before, after = smolact.load_policy(tmp_path, device="cpu")
    engine, pre, post = smolact.load_policy(tmp_path, device="cpu", engine=True, dtype=torch.float32)
    expected = after(slow.predict_action_chunk(before(batch), tiny_noise(1)))
    assert difference(post(engine.predict_action_chunk(pre(batch), tiny_noise(1))), expected) <= 1e-5
    weights = sum(parameter.nbytes for parameter in slow.parameters())
    assert engine.memory <= weights
    quick, *_ = smolact.load_policy(tmp_path, device="cpu", engine={"num_steps": 2, "solver": "heun"})
    assert (quick.num_steps, quick.solver) == (2, "heun")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
def test_compiled_parts_give_the_same() -> None:
    policy, batch, noise = tiny_policy(num_vlm_layers=1, num_steps=2), tiny_batch(), tiny_noise()
    engine = policy.build_engine(dtype=torch.float32, compile=True)
    expected = policy.predict_action_chunk(batch, noise)
    assert difference(engine.predict_action_chunk(batch, noise), expected) <= 1e-5


@pytest.mark.gpu
def test_cuda_graphs_give_the_same_and_other_shapes_are_slow_with_a_warning(
    cuda: CudaStandin | RealCuda, caplog: pytest.LogCaptureFixture
) -> None:
    policy = cuda.module(tiny_policy(tokenizer_max_length=16, num_steps=2))
    engine = policy.build_engine(dtype=torch.float32)
    engine.warm_up()
    for length in (3, 7, 12):
        for seed in range(2):
            words = torch.arange(length)[None] + 10 * seed
            batch = tiny_batch(1, seed=seed) | {
                TOKENS: words,
                MASK: torch.ones_like(words, dtype=torch.bool),
            }
            batch, noise = cuda.tensors(batch), tiny_noise(1).to(cuda.device)
            expected = policy.predict_action_chunk(batch, noise).cpu()
            assert difference(engine.predict_action_chunk(batch, noise).cpu(), expected) <= 1e-4
            engine.observe(batch)
            assert difference(engine.act(batch, noise).cpu(), expected) <= 1e-4
    assert not caplog.records
    batch, noise = cuda.tensors(tiny_batch(3)), tiny_noise(3).to(cuda.device)
    expected = policy.predict_action_chunk(batch, noise).cpu()
    assert difference(engine.predict_action_chunk(batch, noise).cpu(), expected) <= 1e-4
    assert "No CUDA graph was recorded for batch 3" in caplog.text


EULER, HALF = (torch.float32, "euler", 1e-4), (torch.bfloat16, "euler", 1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("settings", "engine_settings"),
    [
        ({}, EULER),
        ({}, HALF),
        ({}, (torch.float32, "midpoint", 1e-4)),
        ({}, (torch.float32, "heun", 1e-4)),
        ({"attention_mode": "self_attn"}, EULER),
        ({"attention_mode": "self_attn"}, HALF),
        ({"empty_cameras": 1}, EULER),
        ({"add_image_special_tokens": True}, EULER),
        ({"relative_step": 0.2}, EULER),
        ({"prefix_length": 40}, EULER),
    ],
    ids=str,
)
def test_graphs_of_any_policy_give_what_the_policy_does(
    cuda: CudaStandin | RealCuda, settings: dict[str, Any], engine_settings: tuple[torch.dtype, str, float]
) -> None:
    dtype, solver, within = engine_settings
    policy = cuda.module(tiny_policy(num_steps=2, **settings))
    engine = policy.build_engine(dtype=dtype, capture=True, solver=solver)
    slow = policy.build_engine(dtype=torch.float32, graphs=False, solver=solver)
    for seed in range(2):  # a graph that has the first answer in it would give it again
        batch, noise = cuda.tensors(tiny_batch(2, seed=seed)), tiny_noise(2, seed=seed).to(cuda.device)
        found = engine.predict_action_chunk(batch, noise).cpu().float()
        assert difference(found, slow.predict_action_chunk(batch, noise).cpu()) <= within
        if solver == "euler":
            assert difference(found, policy.predict_action_chunk(batch, noise).cpu()) <= within


def test_a_replan_waits_for_the_gpu_only_to_compare_the_instruction(cuda: CudaStandin | RealCuda) -> None:
    if isinstance(cuda, RealCuda):
        pytest.skip("only the stand-in counts")
    engine = cuda.module(tiny_policy(num_steps=2)).build_engine(dtype=torch.float32, capture=True)
    batch, noise = cuda.tensors(tiny_batch(1)), tiny_noise(1).to(cuda.device)
    engine.predict_action_chunk(batch, noise)
    cuda.waits.clear()
    engine.predict_action_chunk(batch, noise)
    assert cuda.waits == ["aten._to_copy.default"] * 2  # tokens and their mask come to the host
    cuda.waits.clear()
    engine.observe(batch)
    engine.act(batch, noise)
    assert cuda.waits == ["aten._to_copy.default"] * 2


def test_a_forward_pass_does_not_wait_for_the_gpu(cuda: CudaStandin | RealCuda) -> None:
    if isinstance(cuda, RealCuda):
        pytest.skip("only the stand-in counts")
    policy = tiny_policy()
    config = policy.config
    batch = tiny_batch(2) | {"action": torch.randn(2, config.chunk_size, config.action_feature.shape[0])}
    noise, time = tiny_noise(2), torch.tensor([0.3, 0.8])
    expected, _ = policy.forward(batch, noise, time)
    on_device = cuda.module(policy), cuda.tensors(batch), noise.to(cuda.device), time.to(cuda.device)
    cuda.waits.clear()
    loss, _ = on_device[0].forward(*on_device[1:])
    with torch.autocast("cuda", torch.bfloat16):
        mixed, _ = on_device[0].forward(*on_device[1:])
    assert cuda.waits == []
    assert difference(loss.detach().cpu(), expected.detach()) <= 1e-5
    assert 0 < difference(mixed.detach().cpu(), expected.detach()) <= 1e-2


@pytest.mark.parametrize("settings", [{}, {"relative_step": 0.2}], ids=str)
def test_an_evaluation_is_the_same_with_an_engine(settings: dict[str, Any]) -> None:
    from smolact.envs.factory import make_env
    from smolact.evaluation.rollout import plan_episodes, play
    from smolact.policies.factory import make_pre_post_processors
    from smolact.runtime.local import LocalPolicy

    features = {
        "input_features": {"observation.image": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)), STATE: PolicyFeature(FeatureType.STATE, (2,))},
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (2,))},
    }  # fmt: skip
    policy = tiny_policy(
        num_vlm_layers=1, num_steps=2, chunk_size=40, n_action_steps=40, **features, **settings
    )
    stats = {key: {"mean": torch.zeros(2), "std": torch.ones(2)} for key in (STATE, "action")}
    before, after = make_pre_post_processors(policy, stats)
    played = []
    with make_env("tabletop", 2) as envs:
        for player in (policy.eval(), policy.build_engine(dtype=torch.float32)):
            results = [
                episode.result
                for episode in play(LocalPolicy(player, before, after), envs, plan_episodes(3, seed=1))
            ]
            played.append([(one.task, one.success, one.steps, pytest.approx(one.reward)) for one in results])
    assert played[0] == played[1]

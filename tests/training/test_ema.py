"""The moving average: the formula, and that neither evaluating nor resuming changes a bit of the run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from smolact.errors import CheckpointError, ConfigError
from smolact.training.ema import EMA_STATE, ExponentialMovingAverage, check_no_average, decay_after


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).to(dtype)
    layers[0].bias.requires_grad_(False)
    return layers


def train(policy: nn.Module, ema: ExponentialMovingAverage, steps: int, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _ in range(steps):
            for parameter in policy.parameters():
                parameter += torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            ema.update(policy)


def weights(policy: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("warmup", [True, False])
def test_the_average_is_that_of_the_formula(warmup: bool) -> None:
    policy = network()
    ema = ExponentialMovingAverage(policy, 0.6, warmup=warmup)
    slow = {name: value.double() for name, value in weights(policy).items()}
    for step in range(20):
        train(policy, ema, 1, seed=step)
        decay = min(0.6, (1 + step) / (10 + step)) if warmup else 0.6
        slow = {name: decay * slow[name] + (1 - decay) * value for name, value in weights(policy).items()}
    assert "0.bias" not in ema.averages
    for name, average in ema.averages.items():
        torch.testing.assert_close(average.double(), slow[name], rtol=1e-5, atol=1e-6)


def test_the_decay_warms_up_to_its_value() -> None:
    assert decay_after(0, 0.999) == 0.1
    assert decay_after(8990, 0.999) == pytest.approx(0.999)
    assert decay_after(10**6, 0.999) == 0.999


def test_small_changes_of_half_precision_weights_are_not_lost() -> None:
    policy = network(torch.bfloat16)
    ema = ExponentialMovingAverage(policy, 0.999, warmup=False)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.fill_(1.0)
    for _ in range(3000):
        ema.update(policy)
    assert all((1 - average).abs().max() < 0.1 for average in ema.averages.values())
    with ema.swapped(policy):
        assert policy[0].weight.dtype == torch.bfloat16


def test_a_swap_puts_the_averages_in_and_the_same_bits_back() -> None:
    policy = network()
    ema = ExponentialMovingAverage(policy)
    train(policy, ema, 3)
    before = weights(policy)
    with ema.swapped(policy):
        within = weights(policy)
        assert same_bits({name: within[name] for name in ema.averages}, ema.averages)
        assert torch.equal(within["0.bias"], before["0.bias"])
    assert same_bits(weights(policy), before)
    assert all(parameter.requires_grad is (name != "0.bias") for name, parameter in policy.named_parameters())


def test_a_swap_puts_the_same_bits_back_when_the_block_raises() -> None:
    policy = network()
    ema = ExponentialMovingAverage(policy)
    train(policy, ema, 3)
    before, averages = weights(policy), {name: value.clone() for name, value in ema.averages.items()}
    with pytest.raises(ZeroDivisionError), ema.swapped(policy):
        with torch.no_grad():
            policy[0].weight.zero_()  # whatever the block does to them
        raise ZeroDivisionError
    assert same_bits(weights(policy), before)
    assert same_bits(ema.averages, averages)


def test_a_resumed_average_goes_on_bit_for_bit(tmp_path: Path) -> None:
    policy = network()
    ema = ExponentialMovingAverage(policy, 0.9)
    train(policy, ema, 5)
    ema.save(tmp_path, policy)
    with ema.swapped(policy):
        averaged = weights(policy)  # what `pretrained_model` holds

    resumed = network()
    resumed.load_state_dict(averaged)
    again = ExponentialMovingAverage(resumed, 0.9)
    again.load(tmp_path, resumed)
    trained = {name: value for name, value in weights(policy).items() if name in ema.averages}
    assert same_bits({name: weights(resumed)[name] for name in trained}, trained)
    assert resumed[0].weight.requires_grad

    resumed[0].bias.data.copy_(policy[0].bias)
    train(policy, ema, 5, seed=7)
    train(resumed, again, 5, seed=7)
    assert again.updates == 10
    assert same_bits(again.averages, ema.averages)
    assert same_bits(weights(resumed), weights(policy))


def test_a_missing_damaged_or_foreign_file_is_named(tmp_path: Path) -> None:
    policy = network()
    ema = ExponentialMovingAverage(policy)
    with pytest.raises(CheckpointError, match=r"is missing.*--ema.enable=false"):
        ema.load(tmp_path, policy)
    (tmp_path / EMA_STATE).write_bytes(b"\x08")
    with pytest.raises(CheckpointError, match="is damaged"):
        ema.load(tmp_path, policy)
    save_file({"updates": torch.tensor(1)}, tmp_path / EMA_STATE)
    with pytest.raises(
        CheckpointError, match=r"'average/0\.weight' first \(expected \(4, 3\), found nothing\)"
    ):
        ema.load(tmp_path, policy)


def test_a_run_with_an_average_is_not_resumed_without(tmp_path: Path) -> None:
    policy = network()
    check_no_average(tmp_path)
    ExponentialMovingAverage(policy).save(tmp_path, policy)
    with pytest.raises(ConfigError, match=r"Drop --ema\.enable=false"):
        check_no_average(tmp_path)

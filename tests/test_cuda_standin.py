"""Whether the stand-in of a CUDA device is as strict as a real one, and as right."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.cuda_standin import CudaStandin, RealCuda, cuda_standin


@pytest.fixture
def standin(cuda: CudaStandin | RealCuda) -> CudaStandin:
    if isinstance(cuda, RealCuda):
        pytest.skip("there is a real device")
    return cuda


def test_numbers_are_those_of_the_cpu_and_say_where_they_are(standin: CudaStandin) -> None:
    x, weight = torch.randn(3, 4), torch.randn(5, 4)
    there = torch.nn.functional.linear(x.to("cuda:0"), weight.to("cuda:0"))
    assert there.device == torch.device("cuda:0")
    assert there.is_cuda
    assert torch.equal(there.cpu(), torch.nn.functional.linear(x, weight))
    for made in (torch.zeros(2, device="cuda:0"), torch.tensor([1], device="cuda:0"), there.new_ones(3)):
        assert made.device == torch.device("cuda:0")


def test_writing_into_a_view_writes_into_what_it_is_of(standin: CudaStandin) -> None:
    whole = torch.zeros(3, 4, device="cuda:0")
    whole[:, 1:3] = 1
    whole.view(4, 3)[0].add_(2)
    expected = torch.zeros(3, 4)
    expected[:, 1:3] = 1
    expected.view(4, 3)[0].add_(2)
    assert torch.equal(whole.cpu(), expected)


@pytest.mark.parametrize(
    "mix",
    [
        lambda there, here: there + here,
        lambda there, here: there @ here,
        lambda there, here: torch.cat([there, here]),
        lambda there, here: there.masked_fill_(here > 0, 0),
        lambda there, here: torch.where(here > 0, there, there),
    ],
)
def test_tensors_of_two_devices_do_not_go_together(
    standin: CudaStandin, mix: Callable[[Tensor, Tensor], Tensor]
) -> None:
    with pytest.raises(RuntimeError, match="one device, found cuda:0 and cpu"):
        mix(torch.ones(3, 3, device="cuda:0"), torch.ones(3, 3))


def test_a_single_number_and_indices_may_be_of_the_host(standin: CudaStandin) -> None:
    there = torch.arange(4.0, device="cuda:0")
    assert (there * torch.tensor(2.0)).cpu().tolist() == [0, 2, 4, 6]
    assert there[torch.tensor([3, 0])].cpu().tolist() == [3, 0]
    assert standin.waits == ["aten._to_copy.default"] * 2  # the test's own


@pytest.mark.parametrize(
    "look",
    [
        lambda x: float(x.sum()),
        lambda x: bool((x > 0).all()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.cpu(),
        lambda x: torch.zeros(3).copy_(x),
        lambda x: torch.equal(x, x),
        lambda x: x.tolist(),
    ],
)
def test_what_waits_is_counted_and_refused_while_a_graph_is_recorded(
    standin: CudaStandin, look: Callable[[Tensor], object]
) -> None:
    x = torch.ones(3, device="cuda:0")
    look(x)
    assert standin.waits
    with (
        pytest.raises(RuntimeError, match="a graph is being recorded"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        look(x)


def test_nothing_comes_from_the_host_while_a_graph_is_recorded(standin: CudaStandin) -> None:
    for bring in (lambda: torch.ones(3).to("cuda:0"), lambda: torch.tensor([1.0], device="cuda:0")):
        bring()
        with (
            pytest.raises(RuntimeError, match="a graph is being recorded"),
            torch.cuda.graph(torch.cuda.CUDAGraph()),
        ):
            bring()


def test_a_graph_computes_when_it_is_replayed_with_what_is_there_then(standin: CudaStandin) -> None:
    x, out = torch.ones(3, device="cuda:0"), torch.zeros(3, device="cuda:0")
    graph, factor = torch.cuda.CUDAGraph(), 2.0
    with torch.cuda.graph(graph):
        between = x * factor
        out.copy_(between.view(3) + 1)
    assert out.cpu().tolist() == [0, 0, 0]
    assert bool(between.isnan().all())
    factor = 100.0  # Python is not asked again
    for value in (1.0, 5.0):
        x.fill_(value)
        graph.replay()
        assert out.cpu().tolist() == [2 * value + 1] * 3


def test_graphs_of_a_pool_lose_what_lies_between(standin: CudaStandin) -> None:
    x = torch.ones(3, device="cuda:0")
    pool = torch.cuda.graph_pool_handle()
    first, second, third = (torch.cuda.CUDAGraph() for _ in range(3))
    with torch.cuda.graph(first, pool=pool):
        made = x * 2
    with torch.cuda.graph(second, pool=pool):
        x + 1
    with torch.cuda.graph(third):
        x + 1
    first.replay()
    third.replay()
    assert made.cpu().tolist() == [2, 2, 2]
    second.replay()
    assert bool(made.isnan().all())


def test_modules_move_with_their_ties(standin: CudaStandin) -> None:
    module = nn.ModuleDict({"one": nn.Linear(2, 2), "two": nn.Linear(2, 2)})
    module["two"].weight = module["one"].weight
    moved = standin.module(module)
    assert moved["two"].weight is moved["one"].weight
    assert {parameter.device for parameter in moved.parameters()} == {torch.device("cuda:0")}


def test_afterwards_there_is_no_device() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a real device")
    with cuda_standin() as standin:
        assert torch.empty(1, device=standin.device).is_cuda
    with pytest.raises((RuntimeError, AssertionError), match=r"CUDA|NVIDIA"):
        torch.empty(1, device="cuda:0")

"""CUDA graphs: all GPU work of a function, recorded once and launched at once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

_WARM_UPS = 3


class Graphs:
    """Recorded functions on one set of buffers.

    A call repeats the work on them without Python and single kernel launches. The graphs share the memory of
    intermediate tensors: they never run at the same time, and pass data in the buffers only.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}

    def __contains__(self, name: Hashable) -> bool:
        return name in self._graphs

    def record(self, name: Hashable, function: Callable[[], None], state: Sequence[Tensor] = ()) -> None:
        """Record a function.

        Args:
            function: it reads and writes only tensors that keep their addresses, and never waits for the GPU.
                It is run before it is recorded, so that kernels are compiled and memory is allocated.
            state: tensors that the function advances; they have their values again afterwards.
        """
        before = [tensor.clone() for tensor in state]
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        with torch.cuda.device(self._device):
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    function()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                function()
        self._graphs[name] = graph
        for tensor, saved in zip(state, before, strict=True):
            tensor.copy_(saved)

    def run(self, name: Hashable, function: Callable[[], None]) -> None:
        """Launch the graph of this name; run the function instead if it was not recorded."""
        if name in self._graphs:
            self._graphs[name].replay()
        else:
            function()

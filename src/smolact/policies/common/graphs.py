"""CUDA graphs: all GPU work of a function, recorded once and launched at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Graph:
    """A recorded `function`. A call repeats its work on the same tensors, without Python and single kernel launches.

    Args:
        function: takes and returns nothing; it reads and writes only tensors that keep their addresses, and never waits for the
            GPU. It is run before it is recorded, so that kernels are compiled and memory is allocated.
        device: a CUDA device.
        pool: a memory pool for graphs that never run at the same time and share no data in it.
    """

    _WARM_UPS = 3

    def __init__(self, function: Callable[[], None], device: torch.device, pool: Any = None) -> None:
        with torch.cuda.device(device):
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(self._WARM_UPS):
                    function()
            torch.cuda.current_stream().wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, pool=pool):
                function()

    def __call__(self) -> None:
        """Launch the graph."""
        self._graph.replay()

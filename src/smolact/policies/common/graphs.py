"""A CUDA graph: everything that a function does on the GPU, recorded once and launched as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Graph:
    """`function`, recorded: calling this does on the same tensors what it did, without Python and single launches.

    Args:
        function: takes and gives nothing; all that it reads and writes are tensors that stay where they are, and it never
            waits for the GPU. It is run before it is recorded, so that kernels are compiled and memory is there.
        device: a CUDA device.
        pool: of memory, for graphs that never run at the same time and give nothing to each other in it.
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
        """Launch it."""
        self._graph.replay()

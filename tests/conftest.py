"""No test depends on how fast the machine is; and what tests of several folders stand on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.cuda_standin import CudaStandin, RealCuda
    from tests.hub_standin import StandIn

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # started in the background of a shell: tests press Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
if os.environ.get("ATEN_CPU_CAPABILITY") in ("default", "avx2"):
    # A processor that has no AVX-512 has none for oneDNN either: PyTorch's attention in bfloat16 fails where the two differ.
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[StandIn]:
    """A stand-in of the Hub that takes what is published and gives it again; `test_hub.py` has one that only refuses."""
    from tests.hub_standin import standing_in

    with standing_in(tmp_path) as server:
        yield server


@pytest.fixture
def cuda() -> Iterator[CudaStandin | RealCuda]:
    """The machine's CUDA device, or where there is none a stand-in that is as strict, and computes on the CPU."""
    import torch

    from tests.cuda_standin import RealCuda, cuda_standin

    if torch.cuda.is_available():
        yield RealCuda()
        return
    with cuda_standin() as standin:
        yield standin

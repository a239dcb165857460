"""The state of all random generators of training, as tensors, in LeRobot's file format."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state() -> dict[str, Tensor]:
    """Return the state of Python's, NumPy's, torch's and, where there is one, the accelerator's generator."""
    version, words, _ = random.getstate()
    _, values, index, has_gauss, cached = np.random.get_state()
    state = {
        "py_rng_version": torch.tensor([version]),
        "py_rng_state": torch.tensor(words),
        "np_rng_state_values": torch.from_numpy(np.asarray(values, dtype=np.int64)),
        "np_rng_state_index": torch.tensor([index]),
        "np_rng_has_gauss": torch.tensor([has_gauss]),
        # LeRobot saves this one as float32, which loses half of its bits; it reads either.
        "np_rng_cached_gaussian": torch.tensor([cached], dtype=torch.float64),
        "torch_rng_state": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["torch_cuda_rng_state"] = torch.cuda.get_rng_state()
    if torch.backends.mps.is_available():
        state["torch_mps_rng_state"] = torch.mps.get_rng_state()
    return state


def restore_random_state(state: Mapping[str, Tensor]) -> None:
    """Restore the state that `random_state` returned.

    Raises:
        KeyError, ValueError, TypeError, RuntimeError: the state is incomplete or invalid.
    """
    random.setstate((int(state["py_rng_version"]), tuple(state["py_rng_state"].tolist()), None))
    np.random.set_state(
        (
            "MT19937",
            state["np_rng_state_values"].numpy(),
            int(state["np_rng_state_index"]),
            int(state["np_rng_has_gauss"]),
            float(state["np_rng_cached_gaussian"]),
        )
    )
    torch.set_rng_state(state["torch_rng_state"])
    if torch.cuda.is_available() and "torch_cuda_rng_state" in state:
        torch.cuda.set_rng_state(state["torch_cuda_rng_state"])
    if torch.backends.mps.is_available() and "torch_mps_rng_state" in state:
        torch.mps.set_rng_state(state["torch_mps_rng_state"])


@contextlib.contextmanager
def preserve_rng_state() -> Iterator[None]:
    """Restore the random state after the block: an evaluation must not change the run."""
    state = random_state()
    try:
        yield
    finally:
        restore_random_state(state)

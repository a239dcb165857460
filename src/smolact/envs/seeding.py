"""Episode seeds."""

from __future__ import annotations

import zlib

import numpy as np


def episode_seed(seed: int, index: int, purpose: str) -> int:
    """Return the environment's seed for episode `index` of a run with `seed`, in [0, 2³²).

    With `seed + index`, the runs with seeds 0 and 1 would share all but one episode, and demonstrations and evaluation would
    share all of them; these seeds are independent.
    """
    entropy = [seed, index, zlib.crc32(purpose.encode())]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])

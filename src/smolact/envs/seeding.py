"""Seeds of episodes."""

from __future__ import annotations

import zlib

import numpy as np


def episode_seed(seed: int, index: int, purpose: str) -> int:
    """The environment's seed for episode `index` of the run with `seed`, in [0, 2³²).

    `seed + index` would share all but one of its episodes between the seeds 0 and 1, and all of them between the
    demonstrations and the evaluation of a policy; these have nothing in common.
    """
    entropy = [seed, index, zlib.crc32(purpose.encode())]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])

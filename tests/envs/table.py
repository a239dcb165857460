"""PushT's physics without gym-pusht: the T, its walls and the disc that follows an action, in pymunk."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pymunk

GOAL = np.array([256.0, 256.0, np.pi / 4])


class Table:
    """As much of `gym_pusht/PushT-v0` as its expert reads, with its numbers.

    Args:
        tee: x, y of its origin, and its angle.
        disc: x, y.
    """

    def __init__(self, tee, disc):
        self.space = pymunk.Space()
        self.space.damping = 0.0
        corners = [(5, 5), (5, 506), (506, 506), (506, 5)]
        for index, corner in enumerate(corners):
            self.space.add(pymunk.Segment(self.space.static_body, corner, corners[(index + 1) % 4], 2))
        self.agent = pymunk.Body(body_type=pymunk.Body.KINEMATIC)
        self.agent.position = tuple(disc)
        self.space.add(self.agent, pymunk.Circle(self.agent, 15))
        bar = [(-60, 30), (60, 30), (60, 0), (-60, 0)]
        stem = [(-15, 30), (-15, 120), (15, 120), (15, 30)]
        self.block = pymunk.Body(1, 2 * pymunk.moment_for_poly(1, bar))
        shapes = [pymunk.Poly(self.block, bar), pymunk.Poly(self.block, stem)]
        self.block.center_of_gravity = (0, 45)
        self.block.angle = tee[2]
        self.block.position = tuple(tee[:2])
        self.space.add(self.block, *shapes)
        self.goal_pose = GOAL
        self.unwrapped = self
        self.settle()

    def settle(self):
        self.space.step(0.01)

    def step(self, action):
        """A tenth of a second."""
        for _ in range(10):
            towards = 100 * (np.asarray(action, float) - self.agent.position) - 20 * np.array(
                self.agent.velocity
            )
            self.agent.velocity = tuple(np.array(self.agent.velocity) + 0.01 * towards)
            self.space.step(0.01)

    @property
    def state(self):
        """Everything that moves."""
        agent, block = self.agent, self.block
        return np.array([*agent.position, *agent.velocity, *block.position, block.angle, *block.velocity])

    def off_by(self):
        """Pixels and radians from the goal."""
        block = self.block
        turn = (block.angle - GOAL[2] + np.pi) % (2 * np.pi) - np.pi
        return SimpleNamespace(
            pixels=float(np.hypot(*(np.array(block.position) - GOAL[:2]))), radians=abs(turn)
        )

"""Kill a process that records or repairs, at random moments, and look at what it left."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from pathlib import Path

from smolact.datasets.format import INFO
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.reader import LeRobotDataset
from smolact.datasets.repair import repair
from tests.datasets import damages
from tests.recording.nursery import Nursery
from tests.recording.works import LENGTH

WORKS = "tests.recording.works"


@dataclass
class Killed:
    """How many kills there were, how many of them before the work had begun in earnest, and what was there in the end."""

    kills: int = 0
    early: int = 0
    there: int = 0


def kill_while_recording(
    folder: Path, kills: int, seed: int, *, video: bool, check_every: int = 1, fresh_every: int = 50
) -> Killed:
    """Kill `kills` times, a quarter of them while it begins or resumes, and open the dataset after each.

    Every `check_every`th time all new frames are decoded; after `fresh_every` kills a new dataset is begun.

    Raises:
        AssertionError: an acknowledged episode was lost, or the dataset does not open.
    """
    chance = random.Random(seed)
    acknowledged = checked = there = 0
    done = Killed()
    with Nursery(WORKS) as nursery:
        for kill in range(kills):
            root = folder / f"set-{kill // fresh_every}"
            if kill % fresh_every == 0:
                acknowledged = checked = there = 0
            told = nursery.kill_one(
                "record", chance.randrange(4), chance.random(), root=str(root), video=video
            )
            assert told["killed"], "it records for ever"
            done.kills, done.early = done.kills + 1, done.early + (not told["begun"])
            acknowledged = told["said"] or acknowledged
            if not (root / INFO).is_file():
                assert not acknowledged, (
                    f"kill {kill}: {acknowledged} episodes saved, and there is no dataset"
                )
                continue
            done.there, there = done.there - there, LeRobotDatasetMetadata(root).total_episodes
            done.there += there
            assert there >= acknowledged, (
                f"kill {kill}: {acknowledged} episodes were saved, {there} are found"
            )
            last = (kill + 1) % fresh_every == 0 or kill == kills - 1
            if there > checked and (kill % check_every == 0 or last):
                checked = _check(root, checked, there)
    return done


def kill_while_repairing(folder: Path, kills: int, seed: int) -> Killed:
    """Damage a dataset, kill its repair up to three times, let one end, and look for every episode that was whole.

    Raises:
        AssertionError: an episode was lost, or the dataset does not open.
    """
    chance, done = random.Random(seed), Killed()
    seeds = damages.make_seeds(folder / "seeds")
    with Nursery(WORKS) as nursery:
        while done.kills < kills:
            damage = chance.choice(damages.DAMAGES)
            here = folder / "here"
            shutil.copytree(seeds[damage.seed], here / "set")
            damage.inflict(here / "set")
            for _ in range(chance.randint(1, 3)):
                job = {"root": str(here / "set"), "quick": chance.random() < 0.5}
                told = nursery.kill_one("repair", 0, chance.uniform(0, 1.1), **job)
                done.kills += told["killed"]
                done.early += told["killed"]
                if not told["killed"]:
                    break
            repair(here / "set", quick=True)
            damages.has_the_episodes(here / "set", seeds[damage.seed], damage.episodes)
            assert not repair(here / "set", quick=True).needed
            done.there += len(damage.episodes)
            shutil.rmtree(here)
    return done


def _check(root: Path, first: int, last: int) -> int:
    dataset = LeRobotDataset(root, episodes=list(range(first, last)))
    assert len(dataset) == LENGTH * (last - first)
    for index in range(len(dataset)):
        sample = dataset[index]
        assert sample["index"] == first * LENGTH + index
        assert sample["frame_index"] == index % LENGTH
    return last

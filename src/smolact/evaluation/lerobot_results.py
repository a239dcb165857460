"""An evaluation's results in the form of `lerobot-eval`'s `eval_info.json`, for scripts and tables that read it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from smolact.evaluation.metrics import EpisodeResult, EvaluationResult

EVAL_INFO = "eval_info.json"


def eval_info(result: EvaluationResult, name: str) -> dict[str, Any]:
    """Return the content of the file; percentages are 0 to 100, and seconds are those of all processes together.

    Args:
        name: the group of an environment that is no benchmark. LeRobot uses the environment's type.
    """
    groups: dict[str, dict[str, list[EpisodeResult]]] = {}
    for episode in result.results:
        # The kinds of tasks of an environment that is no benchmark are LeRobot's one task.
        group, task = (name, "") if episode.task_group is None else (episode.task_group, episode.task_kind)
        groups.setdefault(group, {}).setdefault(task, []).append(episode)
    episodes = len(result.results)
    return {
        "per_task": [
            {"task_group": group, "task_id": number, "metrics": _lists(played)}
            for group, tasks in groups.items()
            for number, played in enumerate(tasks.values())
        ],
        "per_group": {
            group: _means([episode for played in tasks.values() for episode in played])
            for group, tasks in groups.items()
        },
        "overall": {
            **_means(result.results),
            "eval_s": result.seconds,
            "eval_ep_s": result.seconds / max(1, episodes),
        },
    }


def _lists(episodes: Sequence[EpisodeResult]) -> dict[str, list[Any]]:
    return {
        "sum_rewards": [episode.reward for episode in episodes],
        "max_rewards": [episode.max_reward for episode in episodes],
        "successes": [episode.success for episode in episodes],
        **_videos(episodes),
    }


def _means(episodes: Sequence[EpisodeResult]) -> dict[str, Any]:
    largest = [episode.max_reward for episode in episodes if episode.max_reward is not None]
    return {
        "avg_sum_reward": fmean(episode.reward for episode in episodes) if episodes else float("nan"),
        "avg_max_reward": fmean(largest) if largest else float("nan"),
        "pc_success": 100 * fmean(episode.success for episode in episodes) if episodes else float("nan"),
        "n_episodes": len(episodes),
        **_videos(episodes),
    }


def _videos(episodes: Sequence[EpisodeResult]) -> dict[str, list[str]]:
    return {
        "video_paths": [episode.video for episode in episodes if episode.video is not None],
        "predicted_video_paths": [],
    }

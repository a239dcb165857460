"""Run by an interpreter that has LeRobot: prints as JSON what it finds in the dataset folder given."""

import json
import sys

from lerobot.datasets.lerobot_dataset import LeRobotDataset


def main(root: str, offsets: list[float]) -> None:
    dataset = LeRobotDataset(
        "local/check", root=root, delta_timestamps={"action": offsets}, video_backend="pyav"
    )
    cameras = dataset.meta.camera_keys
    samples = []
    for index in range(len(dataset)):
        sample = dataset[index]
        samples.append(
            {
                "task": sample["task"],
                **{
                    key: sample[key].tolist()
                    for key in ("action", "action_is_pad", "observation.state", "timestamp")
                },
                **{key: sample[key].item() for key in ("index", "frame_index", "episode_index")},
                **({"next.done": sample["next.done"].item()} if "next.done" in sample else {}),
                **{key: sample[key].double().mean((1, 2)).tolist() for key in cameras},
            }
        )
    stats = {
        key: {name: value.tolist() for name, value in values.items()}
        for key, values in dataset.meta.stats.items()
    }
    print(
        json.dumps(
            {"length": len(dataset), "episodes": dataset.num_episodes, "samples": samples, "stats": stats}
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))

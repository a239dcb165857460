"""Run by an interpreter that has LeRobot (0.6.1 or 0.3.3): prints as JSON, a line each, what it finds in the folders given."""

import json
import sys
from collections.abc import Iterator

import av
import torch
import torchvision


class VideoReader:
    """What LeRobot 0.3.3 asks of torchvision and its newer versions no longer have: frames in order, by PyAV."""

    def __init__(self, path: str, stream: str) -> None:
        self.container = av.open(path)

    def seek(self, seconds: float, keyframes_only: bool) -> None:
        """Go to a key frame at or before."""
        self.container.seek(int(seconds * av.time_base), any_frame=not keyframes_only, backward=True)

    def __iter__(self) -> Iterator[dict[str, object]]:
        for frame in self.container.decode(video=0):
            picture = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
            yield {"data": picture, "pts": float(frame.pts * frame.time_base)}


if not hasattr(torchvision.io, "VideoReader"):
    torchvision.io.VideoReader = VideoReader
    torchvision.set_video_backend = lambda backend: None

from lerobot.datasets.lerobot_dataset import LeRobotDataset  # noqa: E402


def describe(root: str, offsets: list[float]) -> dict[str, object]:
    """Length, episodes, every sample and the statistics."""
    dataset = LeRobotDataset(
        "local/check", root=root, delta_timestamps={"action": offsets}, video_backend="pyav"
    )
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
                **{key: sample[key] for key in ("language_persistent", "language_events") if key in sample},
                **({"next.done": sample["next.done"].item()} if "next.done" in sample else {}),
                **{key: sample[key].double().mean((1, 2)).tolist() for key in dataset.meta.camera_keys},
            }
        )
    stats = {
        key: {name: value.tolist() for name, value in values.items()}
        for key, values in dataset.meta.stats.items()
    }
    return {"length": len(dataset), "episodes": dataset.num_episodes, "samples": samples, "stats": stats}


if __name__ == "__main__":
    for root in sys.argv[2:]:
        print("found", json.dumps(describe(root, json.loads(sys.argv[1]))))

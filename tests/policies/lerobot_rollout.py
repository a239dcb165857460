"""Run by a Python that has LeRobot: `lerobot-rollout` with one of our policies on its SO-101, whose motors and cameras are memory.

    python lerobot_rollout.py CHECKPOINT FOLDER [more flags of lerobot-rollout]

Prints one JSON object: how many actions were taken, how far they are from smolact's for the same observations and noise, and how far
the motors' goals are from them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from lerobot.cameras.opencv import camera_opencv
from lerobot.robots.so_follower import so_follower
from lerobot.rollout.inference.sync import SyncInferenceEngine
from lerobot.scripts import lerobot_rollout

import smolact
from tests.robots.lerobot_arm import Film, MemoryBus

CAMERA = {"type": "opencv", "index_or_path": 0, "width": 64, "height": 48, "fps": 30}
JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
SEED, TASK = 0, "push the block"


class IdealBus(MemoryBus):
    """Motors that are at once where they are told to be."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        for motor in self.motors.values():
            self._set("Min_Position_Limit", motor.id, 1024)
            self._set("Max_Position_Limit", motor.id, 3072)

    def _sync_write(self, addr: int, length: int, ids_values: dict[int, int], **more: Any) -> int:
        table = self.model_ctrl_table["sts3215"]
        if addr == table["Goal_Position"][0]:
            super()._sync_write(table["Present_Position"][0], length, ids_values, **more)
        return super()._sync_write(addr, length, ids_values, **more)


def roll_out(checkpoint: Path, folder: Path, *flags: str) -> list[tuple[dict[str, Any], torch.Tensor]]:
    """`lerobot-rollout`, as it is typed; what it saw and did, moment by moment."""
    one = {"drive_mode": 0, "homing_offset": 0, "range_min": 1024, "range_max": 3072}
    calibration = {name: {"id": number + 1, **one} for number, name in enumerate(JOINTS)}
    (folder / "black.json").write_text(json.dumps(calibration))
    so_follower.FeetechMotorsBus, camera_opencv.cv2.VideoCapture = IdealBus, Film
    seen: list[tuple[dict[str, Any], torch.Tensor]] = []
    plain = SyncInferenceEngine.get_action

    def get_action(self: Any, frame: dict[str, Any]) -> torch.Tensor:
        if not seen:
            torch.manual_seed(SEED)
        action: torch.Tensor = plain(self, frame)
        seen.append(({key: torch.as_tensor(value).clone() for key, value in frame.items()}, action.clone()))
        return action

    SyncInferenceEngine.get_action = get_action
    sys.argv = [
        "lerobot-rollout", f"--policy.path={checkpoint}", "--policy.device=cpu", "--robot.type=so101_follower",
        "--robot.port=usb0", "--robot.id=black", f"--robot.calibration_dir={folder}",
        f"--robot.cameras={json.dumps({'top': CAMERA, 'wrist': CAMERA})}", f"--task={TASK}", "--duration=1.5", "--fps=10",
        "--return_to_initial_position=false", *flags,
    ]  # fmt: skip
    lerobot_rollout.main()
    return seen


def again(checkpoint: Path, seen: list[tuple[dict[str, Any], torch.Tensor]]) -> list[torch.Tensor]:
    """What smolact does in the same moments."""
    policy, preprocess, postprocess = smolact.load_policy(
        checkpoint, device="cpu", engine={"dtype": torch.float32}
    )
    policy.reset()
    torch.manual_seed(SEED)
    actions = []
    for frame, _ in seen:
        batch: dict[str, Any] = {
            key: value.permute(2, 0, 1).float().div(255) if value.ndim == 3 else value.float()
            for key, value in frame.items()
        }
        actions.append(postprocess(policy.select_action(preprocess({**batch, "task": TASK})))[0])
    return actions


def main(checkpoint: Path, folder: Path, *flags: str) -> dict[str, Any]:
    """Roll out, and compare."""
    seen = roll_out(checkpoint, folder, *flags)
    ours = torch.stack(again(checkpoint, seen))
    theirs = torch.stack([action for _, action in seen])
    # The motors were where they were told to be, so the next observation says what was sent.
    arrived = torch.stack([frame["observation.state"] for frame, _ in seen[1:]])
    sent = theirs[:-1].clone()
    sent[:, -1].clamp_(0, 100)  # LeRobot keeps the gripper within its range, and takes joints as they come
    return {
        "actions": len(seen),
        "from smolact's": float((theirs - ours).norm() / ours.norm()),
        "moved": float((theirs[1:] - theirs[:-1]).abs().max()),
        "motors from actions": float((arrived - sent).abs().max()),
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])))

"""One session on simulated arms, for LeRobot's drivers and for ours. Imports nothing of smolact.

A Python with LeRobot 0.6.1 and its extra `feetech` writes what LeRobot's drivers did:
`python so101_session.py so101_lerobot.json`.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

if __package__:
    from tests.robots.feetech_bus import Motor, Motors, SimulatedBus
else:  # LeRobot's Python runs this as a script
    from feetech_bus import Motor, Motors, SimulatedBus

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
CALIBRATION = {
    name: {
        "id": number,
        "drive_mode": 0,
        "homing_offset": 37 * number - 140,
        "range_min": 700 + 11 * number,
        "range_max": 3400 - 7 * number,
    }
    for number, name in enumerate(JOINTS, 1)
}
ACTIONS = [
    {name: (5.5 * step + at) * (-1) ** at for at, name in enumerate(JOINTS[:5])} | {"gripper": 20.25 * step}
    for step in range(5)
]


class Device(Protocol):
    """The methods of a follower that a session calls; a leader has no `act`."""

    def connect(self) -> None: ...

    def observe(self) -> dict[str, float]: ...

    def act(self, goal: dict[str, float]) -> dict[str, float]: ...

    def disconnect(self) -> None: ...


@contextmanager
def arm(calibrated: bool = True) -> Iterator[SimulatedBus]:
    """Six motors that hold `CALIBRATION`, and turn at once."""
    with SimulatedBus(Motor(number) for number in range(1, 7)) as bus:
        prepare(bus, calibrated)
        yield bus


def prepare(bus: Motors, calibrated: bool = True) -> None:
    """Give six motors `CALIBRATION`, and let them turn at once."""
    for motor, entry in zip(bus.motors, CALIBRATION.values(), strict=True):
        motor.speed = 0
        motor.memory[18] = 0x1C  # Phase, as it comes from the factory of some
        if calibrated:
            motor.put(9, entry["range_min"], 2)
            motor.put(11, entry["range_max"], 2)
            offset = entry["homing_offset"]
            motor.put(31, offset if offset >= 0 else 0x800 | -offset, 2)
        motor.turn(2048 + 100 * motor.number)


def run_follower(make: Callable[[str], Device], bus: SimulatedBus) -> dict[str, Any]:
    """Connect, look and move five times, disconnect: the requests and what came of them."""
    device = make(bus.port)
    parts: dict[str, Any] = {}
    with section(parts, "connect", bus):
        device.connect()
    parts["registers"] = [motor.memory.hex() for motor in bus.motors]
    with section(parts, "moves", bus):
        parts["seen"], parts["sent"], parts["goals"] = [], [], []
        for action in ACTIONS:
            parts["seen"].append(device.observe())
            before = len(bus.requests)
            parts["sent"].append(device.act(action))
            while not any(request[4] == 0x83 for request in bus.requests[before:]):  # nothing confirms a goal
                time.sleep(0.002)
            time.sleep(0.01)
            parts["goals"].append(bus.goals())
        parts["seen"].append(device.observe())
    with section(parts, "disconnect", bus):
        device.disconnect()
    parts["torque"] = bus.torque()
    return parts


def run_leader(make: Callable[[str], Device], bus: SimulatedBus) -> dict[str, Any]:
    """Connect, look three times while a hand moves it, disconnect."""
    device = make(bus.port)
    parts: dict[str, Any] = {"seen": []}
    with section(parts, "connect", bus):
        device.connect()
    parts["registers"] = [motor.memory.hex() for motor in bus.motors]
    with section(parts, "looks", bus):
        for step in range(3):
            for motor in bus.motors:
                motor.turn(2000 + 211 * step - 20 * motor.number)
            parts["seen"].append(device.observe())
    with section(parts, "disconnect", bus):
        device.disconnect()
    return parts


@contextmanager
def section(parts: dict[str, Any], name: str, bus: SimulatedBus) -> Iterator[None]:
    """Put the block's requests into `parts`; one that was repeated, as on a busy machine, counts once."""
    before = len(bus.requests)
    yield
    time.sleep(0.02)
    requests = bus.requests[before:]
    parts[name] = [
        request.hex(" ")
        for request, last in zip(requests, [b"", *requests], strict=False)
        if request != last or request[4] == 0x82  # a reading may follow another one
    ]


def move_by_hand(bus: SimulatedBus, done: Callable[[], None]) -> threading.Thread:
    """Move every joint but the wrist's roll through its range, as a person would while a calibration watches."""

    def run() -> None:
        for share in (0.25, -1.0, 0.5, 1.0, 0.0):
            for motor in bus.motors:
                motor.turn(middle(motor) + round(share * (900 + 10 * motor.number)))
            looks = len(bus.requests) + 3
            while len(bus.requests) < looks:  # somebody looks
                time.sleep(0.002)
        done()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def middle(motor: Motor) -> int:
    """Where a person puts a joint's middle."""
    return 1900 + 30 * motor.number


def writes(requests: list[str]) -> list[str]:
    """The requests that write."""
    return [request for request in requests if request.split()[4] in ("03", "83")]


def conversions(count: int, seed: int) -> Iterator[tuple[dict[str, int], str, int, float]]:
    """Random calibrations, modes, steps and values."""
    chosen = random.Random(seed)
    for _ in range(count):
        low = chosen.randrange(0, 4000)
        entry = {
            "id": 1,
            "drive_mode": chosen.randrange(2),
            "homing_offset": chosen.randrange(-2047, 2048),
            "range_min": low,
            "range_max": chosen.randrange(low + 1, 4096),
        }
        unit = chosen.choice(("degrees", "range_m100_100", "range_0_100"))
        yield entry, unit, chosen.randrange(-200, 4296), chosen.uniform(-220, 220)


def main(output: Path) -> None:  # pragma: no cover: run by LeRobot's Python
    import builtins

    from lerobot.motors import motors_bus
    from lerobot.robots.so_follower import SO101Follower, SO101FollowerConfig
    from lerobot.teleoperators.so_leader import SO101Leader, SO101LeaderConfig

    folder = Path(tempfile.mkdtemp())
    (folder / "black.json").write_text(json.dumps(CALIBRATION, indent=4))

    class Adapter:
        def __init__(self, device: Any) -> None:
            self.device = device

        def connect(self) -> None:
            self.device.connect(calibrate=False)

        def observe(self) -> dict[str, float]:
            name = "get_observation" if hasattr(self.device, "get_observation") else "get_action"
            return {key.removesuffix(".pos"): value for key, value in getattr(self.device, name)().items()}

        def act(self, goal: dict[str, float]) -> dict[str, float]:
            sent = self.device.send_action({f"{name}.pos": value for name, value in goal.items()})
            return {key.removesuffix(".pos"): value for key, value in sent.items()}

        def disconnect(self) -> None:
            self.device.disconnect()

    def follower(**settings: Any) -> Callable[[str], Adapter]:
        return lambda port: Adapter(
            SO101Follower(SO101FollowerConfig(port=port, id="black", calibration_dir=folder, **settings))
        )

    result: dict[str, Any] = {}
    for name, settings in (
        ("degrees", {}),
        ("percent", {"use_degrees": False}),
        ("max_relative_target", {"max_relative_target": 4.0}),
    ):
        with arm() as bus:
            result[name] = run_follower(follower(**settings), bus)
    with arm() as bus:
        result["leader"] = run_leader(
            lambda port: Adapter(
                SO101Leader(SO101LeaderConfig(port=port, id="black", calibration_dir=folder))
            ),
            bus,
        )
    with arm(calibrated=False) as bus:
        result["calibrate"] = calibrate(bus, SO101Follower, SO101FollowerConfig, motors_bus, builtins, folder)
    output.write_text(json.dumps(result, indent=1))


def calibrate(
    bus: SimulatedBus, robot: Any, config: Any, motors_bus: Any, builtins: Any, folder: Path
) -> dict[str, Any]:  # pragma: no cover: run by LeRobot's Python
    device = robot(config(port=bus.port, id="new", calibration_dir=folder))
    device.bus.connect()
    pressed = threading.Event()

    def answer(question: str) -> str:
        for motor in bus.motors:
            motor.turn(middle(motor))
        return ""

    builtins.input = answer
    original = motors_bus.enter_pressed
    motors_bus.enter_pressed = pressed.is_set
    parts: dict[str, Any] = {}
    try:
        with section(parts, "requests", bus):
            thread = threading.Timer(0.5, lambda: move_by_hand(bus, pressed.set))
            thread.start()
            device.calibrate()
    finally:
        motors_bus.enter_pressed = original
    parts["requests"] = writes(parts["requests"])
    parts["file"] = (folder / "new.json").read_text()
    parts["registers"] = [motor.memory.hex() for motor in bus.motors]
    device.bus.disconnect()
    return parts


def convert(output: Path, count: int) -> None:  # pragma: no cover: run by LeRobot's Python
    """Write what LeRobot's bus makes of `conversions`: (count, 2) units and steps."""
    import numpy as np
    from lerobot.motors import Motor as LeRobotMotor
    from lerobot.motors import MotorCalibration, MotorNormMode
    from lerobot.motors.feetech import FeetechMotorsBus

    result = np.empty((count, 2))
    buses = {
        mode.value: FeetechMotorsBus(port="", motors={"joint": LeRobotMotor(1, "sts3215", mode)})
        for mode in MotorNormMode
    }
    for at, (entry, unit, steps, value) in enumerate(conversions(count, seed=1)):
        bus = buses[unit]
        bus.calibration = {"joint": MotorCalibration(**entry)}
        result[at] = bus._normalize({1: steps})[1], bus._unnormalize({1: value})[1]
    np.save(output, result)


def witness(output: Path) -> None:  # pragma: no cover: run by LeRobot's Python
    """Write the bytes of the vendor's SDK for each instruction."""
    import scservo_sdk as sdk

    with arm() as bus:
        port = sdk.PortHandler(bus.port)
        port.openPort()
        port.setBaudRate(1_000_000)
        packets = sdk.PacketHandler(0)
        packets.read2ByteTxRx(port, 3, 56)
        packets.write2ByteTxRx(port, 3, 42, 2100)
        packets.write1ByteTxRx(port, 6, 40, 1)
        reader = sdk.GroupSyncRead(port, packets, 56, 2)
        writer = sdk.GroupSyncWrite(port, packets, 42, 2)
        for number in range(1, 7):
            reader.addParam(number)
            writer.addParam(number, [number, 8])
        reader.txRxPacket()
        writer.txPacket()
        time.sleep(0.1)
        output.write_text(json.dumps([request.hex(" ") for request in bus.requests]))
        port.closePort()


if __name__ == "__main__":
    if sys.argv[2:3] == ["units"]:
        convert(Path(sys.argv[1]), int(sys.argv[3]))
    elif sys.argv[2:3] == ["sdk"]:
        witness(Path(sys.argv[1]))
    else:
        main(Path(sys.argv[1]))

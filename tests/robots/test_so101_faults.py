"""Damaged replies, pulled cables and killed processes: a named error or the right value, and the torque is off after it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

if sys.platform == "win32":
    pytest.skip("simulated motors need a pseudo-terminal", allow_module_level=True)

import smolact
from smolact.errors import RobotError
from smolact.registry import ROBOTS, TELEOPERATORS
from smolact.robots.base import ConnectionLostError, Observation, move
from smolact.robots.factory import make_robot, make_teleoperator
from smolact.robots.feetech import registers
from smolact.robots.feetech.bus import FeetechBus
from smolact.robots.feetech.packets import MotorFault
from smolact.robots.so_arm import doctor, setup
from smolact.robots.so_arm.arm import MOTORS, SOArm
from smolact.runtime.controls import ControlCommand, Controls
from smolact.runtime.loop import ControlLoop, NoSource, TeleoperatorSource
from smolact.types import STATE
from tests.robots.feetech_bus import Motor, Motors
from tests.robots.so101_arm import follower
from tests.robots.so101_session import CALIBRATION, arm

Fault = Callable[[bytes, int], bytes]
FAULTS: dict[str, Fault] = {
    "lost": lambda data, at: data[:at] + data[at + 1 :],
    "changed": lambda data, at: data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :],
    "doubled": lambda data, at: data[: at + 1] + data[at:],
}
TICKS = 200


class OncePerRequest:
    """Damages the first reply to each request, and not those to its repetitions."""

    def __init__(self, bus: Motors, fault: Fault, at: int) -> None:
        self.bus, self.fault, self.at = bus, fault, at
        self.count = 0

    def __call__(self, replies: bytes) -> bytes:
        if self.bus.requests[-2:-1] == self.bus.requests[-1:]:
            return replies
        self.count += 1
        return self.fault(replies, self.at % len(replies))


@pytest.fixture
def real_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Motors on a pseudo-terminal lose no reply, so a busy machine may take its time."""
    monkeypatch.setattr("smolact.robots.feetech.bus.TIMEOUT_S", 5.0)


BYTES = [
    pytest.param(at, marks=[] if at in (0, 1, 2, 3, 5, 6, 7, 12, 47) else pytest.mark.slow)
    for at in range(48)
]


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("at", BYTES)
def test_a_damaged_byte_in_every_reply_of_a_session_changes_nothing(
    name: str, at: int, bus: Motors, folder: Path
) -> None:
    assert session(bus, FAULTS[name], at, folder, TICKS) > TICKS + 90  # replies that were damaged


def session(bus: Motors, fault: Fault, at: int, folder: Path, ticks: int) -> int:
    """Connect, look and move, with the first reply to every request damaged; returns how many were."""
    bus.damage = damage = OncePerRequest(bus, fault, at)
    robot = follower("memory", folder)
    robot.connect()
    held = [motor.memory[registers.HOMING_OFFSET.address] for motor in bus.motors]
    for tick in range(ticks):
        for motor in bus.motors:
            motor.memory[registers.TORQUE_ENABLE.address] = 0
            motor.turn(900 + 255 * (tick % 9) + motor.number)  # low bytes of 0xff among them
        expected = [
            entry_to_unit(motor, position)
            for motor, position in zip(MOTORS, [motor.get(56, 2) for motor in bus.motors], strict=True)
        ]
        np.testing.assert_allclose(robot.get_observation()[STATE], expected, rtol=1e-6)
        robot.arms[""].set_goals(dict.fromkeys(MOTORS, 20.0))
    assert held == [motor.memory[registers.HOMING_OFFSET.address] for motor in bus.motors]
    robot.disconnect()
    assert bus.torque() == [0] * 6
    return damage.count


def entry_to_unit(motor: str, steps: int) -> float:
    entry = CALIBRATION[motor]
    low, high = entry["range_min"], entry["range_max"]
    if motor == "gripper":
        return (min(max(steps, low), high) - low) / (high - low) * 100
    return (steps - (low + high) / 2) * 360 / 4095


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("at", BYTES)
def test_replies_that_stay_damaged_are_a_named_error_and_the_torque_goes_off(
    name: str, at: int, bus: Motors, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    robot = follower("memory", folder)
    robot.connect()
    assert bus.torque() == [1] * 6
    truth = robot.get_observation()[STATE]
    bus.damage = lambda replies: FAULTS[name](replies, at % len(replies))
    try:
        # A doubled last byte may be dropped: what is read is the truth.
        np.testing.assert_array_equal(robot.get_observation()[STATE], truth)
    except RobotError as error:
        assert "motors 'shoulder_pan', " in str(error) and "failed reading Present_Position 3 times: " in str(
            error
        )
        robot.disconnect()
        assert "could not be switched off: cut the arm's power" in caplog.text  # no reply confirmed it
    assert bus.torque() == [0] * 6


def test_a_motor_that_is_missing_is_named_at_connection(bus: Motors, folder: Path) -> None:
    gripper = bus.motors.pop()
    robot = follower("memory", folder)
    with pytest.raises(RobotError, match=r"misses gripper \(id 6\).*setup-motors"):
        robot.connect()
    assert not robot.arms[""].bus.is_open
    bus.motors.append(gripper)
    gripper.put(3, 2825, 2)
    with pytest.raises(
        RobotError, match=r"The motor 'gripper' .* is of model STS3250; an arm's motors are STS3215"
    ):
        robot.connect()
    gripper.put(3, 777, 2)
    gripper.memory[1] = 9
    with pytest.raises(RobotError, match=r"have different firmware: .*gripper 3\.9"):
        robot.connect()
    for motor in bus.motors:
        motor.memory[registers.ID.address] += 20
    with pytest.raises(RobotError, match="None replies: is the arm powered"):
        robot.connect()


def test_faults_are_told_by_the_motors_name(
    bus: Motors, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    robot = follower("memory", folder)
    robot.connect()
    bus.motors[5].error = MotorFault.OVERLOAD | MotorFault.VOLTAGE
    for _ in range(3):
        robot.get_observation()
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and said[0].startswith("The motor 'gripper' of the follower 'black' reports: ")
    assert "its supply voltage is out of range" in said[0] and "it is overloaded and has let go" in said[0]
    robot.disconnect()


def test_a_pulled_cable_is_told_and_comes_back(folder: Path, real_time: None) -> None:
    port = folder / "arm"
    with arm() as bus:
        port.symlink_to(bus.port)
        robot = follower(port, folder)
        robot.connect()
        bus.unplug()
        with pytest.raises(ConnectionLostError, match=r"lost its port .*arm.*Look at the USB cable"):
            for _ in range(3):
                robot.get_observation()
        with pytest.raises(RobotError, match="can't be opened"):
            robot.reconnect()
    with arm() as bus:
        for motor in bus.motors:  # their power was never cut
            motor.memory[registers.TORQUE_ENABLE.address] = 1
            motor.memory[registers.P_COEFFICIENT.address] = 16
        port.unlink()
        port.symlink_to(bus.port)
        before = len(bus.requests)
        robot.reconnect()
        assert not any(
            request[4] == 3 and request[5] == 21 for request in bus.requests[before:]
        )  # not configured again
        robot.get_observation()
        robot.disconnect()
        assert bus.torque() == [0] * 6


KILLED = """
import os, signal, sys, time
from pathlib import Path
from smolact.robots.feetech import bus
bus.TIMEOUT_S = 5.0
from smolact.registry import ROBOTS, TELEOPERATORS
from smolact.robots.factory import make_robot
robot = make_robot("so101_follower", ROBOTS, port=sys.argv[1], id="black", calibration_dir=Path(sys.argv[2]))
robot.connect()
print("connected", flush=True)
sys.stdin.readline()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_torque_goes_off_when_the_process_is_killed(folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(smolact.__file__).parents[1])}
    with arm() as bus:
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, bus.port, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == "connected\n"
        assert bus.torque() == [1] * 6
        process.stdin.write("\n")
        process.stdin.close()
        assert process.wait() == -signal.SIGKILL
        wait_until(lambda: bus.torque() == [0] * 6)
        process.stdout.close()


def test_the_torque_stays_where_it_is_to_stay(folder: Path, real_time: None) -> None:
    with arm() as bus:
        robot = make_robot(
            "so101_follower",
            ROBOTS,
            port=bus.port,
            id="black",
            calibration_dir=folder,
            disable_torque_on_disconnect=False,
        )
        robot.connect()
        robot.disconnect()
        robot.disconnect()
        time.sleep(0.2)  # longer than a guard takes that was not dismissed
        assert bus.torque() == [1] * 6


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)


def test_an_adapter_that_echoes_is_understood(bus: Motors) -> None:
    bus.echoes = True
    device = FeetechBus("memory", MOTORS, "arm")
    device.open()
    assert device.sync_read(registers.PRESENT_TEMPERATURE) == dict.fromkeys(MOTORS, 31)
    device.write(registers.TORQUE_ENABLE, "gripper", 1)
    assert device.read(registers.TORQUE_ENABLE, "gripper") == 1
    assert device.broadcast_ping() == list(range(1, 7))
    device.close()


@pytest.mark.parametrize(
    ("register", "value", "stored"),
    [
        (registers.HOMING_OFFSET, -5, 0x805),
        (registers.HOMING_OFFSET, 2047, 2047),
        (registers.PRESENT_LOAD, -1023, 0x7FF),
        (registers.GOAL_POSITION, -5, 0x8005),
        (registers.PRESENT_POSITION, 4095, 4095),
    ],
)
def test_signs_are_a_bit(register: registers.Register, value: int, stored: int) -> None:
    assert register.encode(value) == stored and register.decode(stored) == value


def test_a_value_that_does_not_fit_is_not_sent() -> None:
    with pytest.raises(ValueError, match="Homing_Offset takes -2047 to 2047, found 2048"):
        registers.HOMING_OFFSET.encode(2048)
    with pytest.raises(ValueError, match="Torque_Enable takes 0 to 255, found -1"):
        registers.TORQUE_ENABLE.encode(-1)


class Person:
    """Connects one motor after the other when asked."""

    def __init__(self, bus: Motors, motors: list[list[Motor]]) -> None:
        self.bus, self.motors, self.said = bus, iter(motors), list[str]()

    def ask(self, question: str) -> str:
        self.bus.motors = next(self.motors)
        return ""

    def say(self, line: str) -> None:
        self.said.append(line)

    def watch(self, title: str, columns: setup.Row, rows: Callable[[], object]) -> None:
        raise AssertionError


def test_new_motors_get_their_ids_one_after_the_other(bus: Motors) -> None:
    new = [Motor(1) for _ in range(6)]
    wrong = Motor(1, model=2825)
    device = SOArm("memory", "follower", "robots", name="x")
    person = Person(bus, [[], [new[0], Motor(7)], [wrong], [new[0]], *([motor] for motor in new[1:])])
    setup.setup_motors(device, person)
    assert [motor.number for motor in new] == [6, 5, 4, 3, 2, 1]
    assert [line.split(".")[0] for line in person.said] == [
        "No motor replies at any baud rate",
        "2 motors reply (ids 1, 7)",
        "This motor is a STS3250; an arm's are STS3215s",
        "'gripper' is motor 6 now (it was 1)",
        *(f"'{name}' is motor {MOTORS[name]} now (it was 1)" for name in list(MOTORS)[4:0:-1]),
        "'shoulder_pan' is motor 1 now",
    ]
    assert all(motor.memory[registers.LOCK.address] == 1 for motor in new)


def test_the_doctor_finds_what_is_wrong(bus: Motors, folder: Path) -> None:
    device = SOArm("memory", "follower 'black'", "robots", name="black", calibration_dir=folder)
    device.open()
    report = doctor.examine(device, readings=20)
    assert report.timing.readings == 20 and 0 < report.timing.p50 <= report.timing.p99
    assert report.motors[0].row()[:3] == ("shoulder_pan", "1", str(2148 + 103))
    bus.motors[0].memory[63] = 66
    bus.motors[1].memory[62] = 91
    bus.motors[2].error = MotorFault.HEAT
    bus.motors[3].turn(300)
    bus.motors[5].put(9, 1, 2)
    found = "\n".join(doctor.examine(device, readings=2).findings)
    assert "shoulder_pan has 66 °C" in found and "shoulder_lift gets 9.1 V" in found
    assert (
        "elbow_flex: it is too hot" in found
        and "hold another calibration than" in found
        and ": gripper." in found
    )
    bus.motors[5].put(9, CALIBRATION["gripper"]["range_min"], 2)
    found = "\n".join(doctor.examine(device, readings=2).findings)
    assert "wrist_flex stands at 292, outside of its calibrated range 744 to 3372" in found
    device.close(torque_off=False)


class Pressed:
    """Waits that a person uses: the n-th wait plugs the cable in, presses a key, or both."""

    def __init__(self, *actions: Callable[[], None]) -> None:
        self.actions = iter(actions)

    def __call__(self, seconds: float) -> None:
        next(self.actions, lambda: None)()


def pulled(data: bytes) -> bytes:
    raise OSError(5, "Input/output error")


def unanswered(data: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("broken", [pulled, unanswered])
def test_the_control_loop_waits_for_the_cable_and_goes_on(
    broken: Callable[[bytes], bytes],
    bus: Motors,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    robot, controls = follower("memory", folder), Controls()
    robot.connect()
    answer = bus.exchange
    seen: list[Observation] = []

    def on_tick(observation: Observation, action: object) -> None:
        seen.append(observation)
        if len(seen) == 3:
            monkeypatch.setattr(bus, "exchange", broken)

    def mend() -> None:
        monkeypatch.setattr(bus, "exchange", answer)
        controls.press("space")

    loop = ControlLoop(
        robot, 30, realtime=False, controls=controls, sleep=Pressed(lambda: controls.press("space"), mend)
    )
    with pytest.raises(ConnectionLostError):  # nobody is there
        loop.run_for(6, NoSource(), on_tick)
    controls.is_operated = True
    assert loop.run_for(6, NoSource(), on_tick) is None
    assert loop.ticks == 6 and len(seen) == 6
    assert caplog.text.count("Plug it in again and press space to go on, or q to stop.") == 2
    monkeypatch.setattr(bus, "exchange", broken)
    loop.sleep = Pressed(lambda: controls.press("q"))
    assert loop.run_for(9, NoSource(), on_tick) is ControlCommand.STOP
    robot.disconnect()
    assert "could not be switched off: cut the arm's power" in caplog.text


def test_an_arm_follows_as_far_as_its_hand_after_a_reconnect(bus: Motors, folder: Path) -> None:
    robot = make_robot("so101_follower", ROBOTS, port="memory", id="black", calibration_dir=folder)
    robot.connect()
    gate = robot.gate

    class Hand:
        def get_action(self, observation: Observation) -> np.ndarray:
            return observation[STATE] + np.array([25, 0, 0, 0, 0, 0], np.float32)

    source = TeleoperatorSource(Hand(), gate)  # type: ignore[arg-type]
    robot.reconnect()  # type: ignore[attr-defined]
    assert robot.gate is gate
    start = robot.get_observation()[STATE][0]
    for _ in range(3):
        move(robot, source.get_action(robot.get_observation()))
    assert robot.get_observation()[STATE][0] == pytest.approx(start + 75, abs=0.5)  # more than one step of 30
    robot.disconnect()


def test_a_pulled_leader_is_connected_again(
    bus: Motors, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    robot, controls = follower("memory", folder), Controls()
    robot.connect()
    leader = make_teleoperator(
        "so101_leader", TELEOPERATORS, port="memory", id="black", calibration_dir=folder
    )
    leader.connect(robot)
    read, is_pulled = leader.get_action, [True]

    def get_action(observation: Observation) -> np.ndarray:
        if is_pulled[0]:
            raise ConnectionLostError("The leader lost its port.")
        return read(observation)

    def plug_in() -> None:
        is_pulled[0] = False
        controls.press("space")

    monkeypatch.setattr(leader, "get_action", get_action)
    controls.is_operated = True
    loop = ControlLoop(robot, 30, realtime=False, controls=controls, sleep=Pressed(plug_in))
    assert loop.run_for(3, TeleoperatorSource(leader, robot.gate)) is None and loop.ticks == 3
    leader.disconnect()
    robot.disconnect()


def test_a_healthy_arm_is_switched_off_when_its_leader_does_not_come_back(
    bus: Motors, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    robot, controls = follower("memory", folder), Controls()
    robot.connect()
    controls.is_operated = True

    class Gone:
        drives_resets = True

        def begin(self, task: str) -> None: ...

        def get_action(self, observation: Observation) -> np.ndarray:
            raise ConnectionLostError("The leader lost its port.")

    loop = ControlLoop(
        robot, 30, realtime=False, controls=controls, sleep=Pressed(lambda: controls.press("q"))
    )
    assert loop.run_for(9, Gone()) is ControlCommand.STOP
    assert bus.torque() == [1] * 6
    robot.disconnect()
    assert bus.torque() == [0] * 6
    assert "could not be switched off" not in caplog.text


def test_an_interrupted_calibration_leaves_the_motors_as_they_were(bus: Motors, folder: Path) -> None:
    class Interrupts(Person):
        def ask(self, question: str) -> str:
            return ""

        def watch(self, title: str, columns: setup.Row, rows: Callable[[], object]) -> None:
            raise KeyboardInterrupt

    device = SOArm("memory", "follower 'black'", "robots", name="black", calibration_dir=folder)
    device.open()
    with pytest.raises(KeyboardInterrupt):
        setup.calibrate(device, Interrupts(bus, []), new=True)
    device.check_calibration()
    device.close()

"""The serial bus of Feetech motors: registers by motor name, with bounded retries. Needs pyserial.

A reply counts only if exactly the expected bytes came, once or, where the first reply was late, several times: a lost, doubled,
changed or foreign byte makes the bus repeat the request. All requests here may be repeated, since they read or set absolute
values. After a loss, the line must be silent for `LATE_S` before another request, so that no late reply is taken for its reply.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

from smolact.errors import RobotError, optional_import
from smolact.robots.base import ConnectionLostError
from smolact.robots.feetech import packets, registers
from smolact.robots.feetech.packets import Instruction, MotorFault, PacketError
from smolact.robots.feetech.registers import Register
from smolact.robots.ports import UsbAdapter, adapter_at, ports_present

logger = logging.getLogger(__name__)

BAUD_RATE = 1_000_000
TIMEOUT_S = 0.02
"""How long the first attempt waits for a reply, beside the time that its bytes take. Further attempts wait two and four times as long."""
SILENCE_S = 0.004
"""The line is silent when no byte came for so long: several times a USB frame."""
LATE_S = 0.03
"""How late a reply may come after its time is over."""
BROADCAST_S = 0.05
"""How long motors take to reply to a broadcast."""
CHATTER_S = 0.25
"""How long the bus listens to a line that does not become silent."""
RETRIES = 2


class NoReplyError(ConnectionLostError):
    """Motors do not reply, or their replies stay damaged, though the port is open."""


def open_port(port: str, baud_rate: int) -> Any:
    """Return pyserial's open port, whose `read` waits `SILENCE_S` for the first byte."""
    serial: Any = optional_import("serial", "so101")
    return serial.Serial(port, baud_rate, timeout=SILENCE_S, write_timeout=1.0, exclusive=True)


class FeetechBus:
    """Motors on one serial port.

    Args:
        port: the serial port, which changes when the adapter comes back under another name.
        motors: the motors' names and ids.
        owner: the device's name in messages, such as `robot 'so101_follower'`.
        retries: how often a request is repeated before it fails.
        baud_rate: bits a second.

    Attributes:
        faults: the faults that each motor reported in its last reply, by name.
        lost_replies: replies that were lost or wrong, repeated or not.
        requests: requests that were sent, repeated ones not counted.
    """

    def __init__(
        self,
        port: str,
        motors: Mapping[str, int],
        owner: str,
        *,
        retries: int = RETRIES,
        baud_rate: int = BAUD_RATE,
    ) -> None:
        self.port, self.motors, self.owner, self.retries = port, dict(motors), owner, retries
        self._names = {number: name for name, number in self.motors.items()}
        self._baud_rate = baud_rate
        self._serial: Any = None
        self._adapter: UsbAdapter | None = None
        self.faults: dict[str, MotorFault] = {}
        self.lost_replies = self.requests = 0
        self._may_be_late = False

    @property
    def is_open(self) -> bool:
        """Whether the port is open."""
        return self._serial is not None

    def open(self) -> None:
        """Open the port; opened again, the port at which the same USB adapter is now, whatever its name.

        Raises:
            MissingDependencyError: pyserial is not installed.
            RobotError: the port does not exist, or may not be used.
        """
        if self._adapter is not None:
            port, before = self._adapter.find_port(self.port), self.port
            if port != before:
                self.port = port
                logger.warning("The %s is at %s now; it was at %s.", self.owner, port, before)
        try:
            self._serial = open_port(self.port, self._baud_rate)
        except (OSError, ValueError) as error:  # serial.SerialException is an OSError
            raise RobotError(self._cannot_open(error)) from error
        self._adapter = adapter_at(self.port)

    def close(self) -> None:
        """Close the port. May be called at any time, more than once."""
        port, self._serial = self._serial, None
        if port is not None:
            try:
                port.close()
            except OSError as error:  # the cable was pulled: the descriptor is gone anyway
                logger.debug("Closing %s: %s", self.port, error)

    def fileno(self) -> int | None:
        """Return the open port's file descriptor; None where the system has none."""
        try:
            return int(self._serial.fileno())
        except (AttributeError, OSError):
            return None

    def set_baud_rate(self, baud_rate: int) -> None:
        """Talk at another rate from now on; changes no motor."""
        self._baud_rate = baud_rate
        if self._serial is not None:
            self._serial.baudrate = baud_rate

    def read(self, register: Register, motor: str) -> int:
        """Return a register of one motor.

        Raises:
            NoReplyError: the motor does not reply, or its replies are damaged.
            ConnectionLostError: the port is gone.
        """
        return self.read_id(register, self.motors[motor])

    def write(self, register: Register, motor: str, value: int, *, retries: int | None = None) -> None:
        """Set a register of one motor, and wait for its confirmation. Raises as `read` does."""
        self.write_id(register, self.motors[motor], value, retries=retries)

    def read_id(self, register: Register, motor: int) -> int:
        """Call `read` for a motor by its id."""
        packet = packets.request(motor, Instruction.READ, bytes([register.address, register.size]))
        ((_, data),) = self._exchange(packet, [motor], register.size, f"reading {register.name}", register)
        return register.decode(int.from_bytes(data, "little"))

    def write_id(self, register: Register, motor: int, value: int, *, retries: int | None = None) -> None:
        """Call `write` for a motor by its id."""
        data = bytes([register.address]) + register.encode(value).to_bytes(register.size, "little")
        packet = packets.request(motor, Instruction.WRITE, data)
        self._exchange(packet, [motor], 0, f"writing {register.name}", retries=retries)

    def model(self, motor: int, *, retries: int | None = None) -> int | None:
        """Return the model number of the motor with this id; None if none replies."""
        packet = packets.request(
            motor, Instruction.READ, bytes([registers.MODEL_NUMBER.address, registers.MODEL_NUMBER.size])
        )
        try:
            ((_, data),) = self._exchange(packet, [motor], 2, "reading its model", retries=retries)
        except NoReplyError:
            return None
        return int.from_bytes(data, "little")

    def broadcast_ping(self) -> list[int]:
        """Return the ids of all motors that reply at the present baud rate; replies that collide are lost."""
        packet = packets.request(packets.BROADCAST, Instruction.PING)
        self._send(packet)
        time.sleep(BROADCAST_S)
        data = b""
        deadline = perf_counter() + CHATTER_S
        while (more := self._read(256)) and perf_counter() < deadline:
            data += more
        data = data.removeprefix(packet)
        found = []
        for at in range(len(data) - packets.REPLY_BYTES + 1):
            reply = data[at : at + packets.REPLY_BYTES]
            with contextlib.suppress(PacketError):
                packets.split_reply(reply, reply[2])
                found.append(reply[2])
        return sorted(set(found))

    def sync_read(self, register: Register) -> dict[str, int]:
        """Return a register of all motors, by name, with one request. Raises as `read` does."""
        ids = list(self._names)
        packet = packets.sync_read(register.address, register.size, ids)
        replies = self._exchange(packet, ids, register.size, f"reading {register.name}", register)
        return {
            self._names[motor]: register.decode(int.from_bytes(data, "little")) for motor, data in replies
        }

    def sync_write(self, register: Register, values: Mapping[str, int]) -> None:
        """Set a register of several motors with one request, which no motor confirms.

        Raises:
            ConnectionLostError: the port is gone.
        """
        encoded = {self.motors[name]: register.encode(value) for name, value in values.items()}
        self._send(packets.sync_write(register.address, register.size, encoded))
        self.requests += 1

    def _exchange(
        self,
        packet: bytes,
        motors: Sequence[int],
        size: int,
        purpose: str,
        register: Register | None = None,
        *,
        retries: int | None = None,
    ) -> list[tuple[int, bytes]]:
        """Send a request until every motor replied with `size` parameters; returns (id, parameters) of each."""
        self.requests += 1
        if self._may_be_late:
            self._drain(LATE_S)
            self._may_be_late = False
        attempts = 1 + (self.retries if retries is None else retries)
        reason = ""
        for attempt in range(attempts):
            try:
                return self._attempt(packet, motors, size, register, TIMEOUT_S * min(2**attempt, 4))
            except PacketError as error:
                self.lost_replies += 1
                self._may_be_late = True
                reason = str(error)
        raise NoReplyError(
            f"The {self.owner} at {self.port}: {self._label(motors)} failed {purpose} {attempts} times: {reason}. "
            "Is it powered, and are all its cables in? `smolact robot doctor` looks at each motor."
        )

    def _attempt(
        self, packet: bytes, motors: Sequence[int], size: int, register: Register | None, timeout: float
    ) -> list[tuple[int, bytes]]:
        self._send(packet)
        length = packets.REPLY_BYTES + size
        data = self._receive(packet, length * len(motors), timeout)[-length * len(motors) :]
        replies = []
        for at, motor in enumerate(motors):
            fault, parameters = packets.split_reply(data[at * length : (at + 1) * length], motor)
            self._check_range(register, parameters)
            replies.append((motor, parameters))
            self._note(motor, fault)
        return replies

    def _send(self, packet: bytes) -> None:
        if self._serial is None:
            raise RobotError(f"The {self.owner} is not connected. Call connect() first.")
        try:
            self._serial.reset_input_buffer()
            self._serial.write(packet)
        except Exception as error:  # OSError, or termios.error and TypeError for a descriptor that is gone
            raise self._lost(error) from error

    def _receive(self, packet: bytes, expected: int, timeout: float) -> bytes:
        """Return the replies' bytes, `expected` or a multiple, after the echo of the request if the adapter sends one."""
        deadline = perf_counter() + timeout + (len(packet) + expected) * 10 / self._baud_rate
        data = b""
        while True:
            is_echo = 0 < len(data) < len(packet) and data == packet[: len(data)]
            if len(data) >= expected and not is_echo and not self._waiting():
                break
            if len(data) > 4 * (len(packet) + expected):
                raise PacketError("something else than motors is talking at this port")
            # A busy machine may have kept this process waiting and not the motors: the last look comes after the deadline.
            is_last = perf_counter() >= deadline
            missing = (len(packet) if is_echo else expected) - len(data)
            data = (data + self._read(max(missing, self._waiting()))).removeprefix(packet)
            if len(data) < expected and is_last:
                raise PacketError(f"{len(data)} of {expected} bytes came" if data else "no reply came")
        if len(data) % expected:
            self._drain(SILENCE_S)
            raise PacketError(f"{len(data)} bytes came in place of {expected}")
        return data

    def _read(self, count: int) -> bytes:
        """Return up to `count` bytes, at least one of which must come within `SILENCE_S`."""
        try:
            return bytes(self._serial.read(max(1, count)))
        except Exception as error:
            raise self._lost(error) from error

    def _waiting(self) -> int:
        try:
            return int(self._serial.in_waiting)
        except Exception as error:
            raise self._lost(error) from error

    def _drain(self, silence: float) -> None:
        """Read until no byte came for `silence` seconds."""
        silent_since = began = perf_counter()
        while perf_counter() - silent_since < silence and perf_counter() - began < CHATTER_S:
            if self._read(256):
                silent_since = perf_counter()

    def _check_range(self, register: Register | None, parameters: bytes) -> None:
        if register is None or register.maximum is None:
            return
        value = register.decode(int.from_bytes(parameters, "little"))
        if abs(value) > register.maximum:
            raise PacketError(f"the reply says {value}, and {register.name} is at most {register.maximum}")

    def _note(self, motor: int, fault: MotorFault) -> None:
        """Keep a motor's faults, and log each when it appears."""
        name = self._names.get(motor, f"motor {motor}")
        if fault & ~self.faults.get(name, MotorFault(0)):
            logger.warning("The motor '%s' of the %s reports: %s.", name, self.owner, fault.words())
        self.faults[name] = fault

    def _label(self, motors: Sequence[int]) -> str:
        names = [f"'{self._names[motor]}'" if motor in self._names else f"of id {motor}" for motor in motors]
        return f"motor {names[0]}" if len(names) == 1 else f"motors {', '.join(names)}"

    def _lost(self, error: Exception) -> ConnectionLostError:
        return ConnectionLostError(
            f"The {self.owner} lost its port {self.port} ({error}). Look at the USB cable and the adapter's power. {ports_present()}"
        )

    def _cannot_open(self, error: Exception) -> str:
        number = getattr(error, "errno", None)
        message = f"The {self.owner} has port {self.port}, which can't be opened: {error}."
        if number == 13:
            return f"{message} Your user may not use it: on Linux, `sudo usermod -aG dialout $USER`, then log in again."
        if number in (11, 16) or "lock port" in str(error):
            return f"{message} Another program uses it, or another device of this command has the same port."
        return f"{message} {ports_present()} `smolact robot find-port` finds the right one."

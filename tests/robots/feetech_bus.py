"""A bus of simulated Feetech motors on a pseudo-terminal, which speaks the wire protocol. Imports nothing of smolact.

`python feetech_bus.py 6` serves six motors, and prints the port's name, until its standard input ends.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
import time
import tty
from collections.abc import Callable, Iterable

BROADCAST = 0xFE
PING, READ, WRITE, SYNC_READ, SYNC_WRITE = 1, 2, 3, 0x82, 0x83
MODEL, ID, HOMING, TORQUE, GOAL, LOCK, POSITION, VOLTAGE, TEMPERATURE = 3, 5, 31, 40, 42, 55, 56, 62, 63
EEPROM = range(40)


def signed(stored: int, bit: int) -> int:
    magnitude = stored & ((1 << bit) - 1)
    return -magnitude if stored >> bit & 1 else magnitude


class Motor:
    """The memory of one motor. `turn` is what a hand does to its horn."""

    def __init__(self, number: int, model: int = 777) -> None:
        self.memory = bytearray(256)
        self.put(MODEL, model, 2)
        self.memory[0], self.memory[1], self.memory[ID] = 3, 10, number
        self.put(11, 4095, 2)
        self.memory[18], self.memory[21], self.memory[22], self.memory[23] = 12, 32, 32, 0
        self.memory[LOCK], self.memory[VOLTAGE], self.memory[TEMPERATURE] = 1, 74, 31
        self.raw = 2048
        self.speed = 4096.0
        """Steps in a second towards the goal while the torque is on; 0 jumps."""
        self.error = 0
        self._moved_at = time.monotonic()
        self.turn(2048)

    @property
    def number(self) -> int:
        return self.memory[ID]

    def get(self, address: int, size: int = 1) -> int:
        return int.from_bytes(self.memory[address : address + size], "little")

    def put(self, address: int, value: int, size: int = 1) -> None:
        self.memory[address : address + size] = value.to_bytes(size, "little")

    def turn(self, raw: int) -> None:
        """Turn the horn to an absolute position of the sensor."""
        self.raw = raw
        position = raw - signed(self.get(HOMING, 2), 11)
        self.put(POSITION, position if position >= 0 else 0x8000 | -position, 2)

    def write(self, address: int, data: bytes) -> None:
        for at, byte in enumerate(data, address):
            if at in EEPROM and self.memory[LOCK]:
                continue  # as the real one: a locked EEPROM forgets the write
            if at == TORQUE and byte and not self.memory[TORQUE]:
                self.memory[GOAL : GOAL + 2] = self.memory[POSITION : POSITION + 2]  # it holds where it is
            self.memory[at] = byte
        self.turn(round(self.raw))

    def move(self) -> None:
        """Move towards the goal for the time since the last call."""
        now = time.monotonic()
        passed, self._moved_at = now - self._moved_at, now
        if not self.memory[TORQUE]:
            return
        goal = signed(self.get(GOAL, 2), 15) + signed(self.get(HOMING, 2), 11)
        step = self.speed * passed if self.speed else 1e9
        self.turn(round(self.raw + max(-step, min(step, goal - self.raw))))


class Motors:
    """The motors on a bus, as bytes in and bytes out.

    Attributes:
        motors: by position on the chain; change, add and remove them at will.
        requests: the bytes of every request that was understood.
        damage: called with the bytes of each request's replies; returns the bytes to send in their place.
        echoes: whether the adapter sends every request back, as half-duplex ones do.
    """

    def __init__(self, motors: Iterable[Motor]) -> None:
        self.motors = list(motors)
        self.requests: list[bytes] = []
        self.damage: Callable[[bytes], bytes] = bytes
        self.echoes = False
        self._pending = b""

    def motor(self, number: int) -> Motor:
        return next(motor for motor in self.motors if motor.number == number)

    def goals(self) -> list[int]:
        return [signed(motor.get(GOAL, 2), 15) for motor in self.motors]

    def torque(self) -> list[int]:
        return [motor.memory[TORQUE] for motor in self.motors]

    def exchange(self, data: bytes) -> bytes:
        """Take bytes from the line, and return those that come back."""
        self._pending += data
        output = b""
        while True:
            start = self._pending.find(b"\xff\xff")
            if start < 0:
                self._pending = self._pending[-1:]
                return output
            waiting = self._pending[start:]
            if len(waiting) < 4 or len(waiting) < waiting[3] + 4:
                self._pending = waiting
                return output
            packet, self._pending = waiting[: waiting[3] + 4], waiting[waiting[3] + 4 :]
            if ~sum(packet[2:-1]) & 0xFF == packet[-1]:
                self.requests.append(packet)
                replies = self._answer(packet[2], packet[4], packet[5:-1])
                output += packet * self.echoes + (self.damage(replies) if replies else b"")

    def _answer(self, number: int, instruction: int, parameters: bytes) -> bytes:
        for motor in self.motors:
            motor.move()
        if instruction == SYNC_READ:
            address, size, *numbers = parameters
            return b"".join(
                self._reply(motor, bytes(motor.memory[address : address + size]))
                for number in numbers
                for motor in self.motors
                if motor.number == number
            )
        if instruction == SYNC_WRITE:
            address, size = parameters[:2]
            for at in range(2, len(parameters), size + 1):
                for motor in self.motors:
                    if motor.number == parameters[at]:
                        motor.write(address, parameters[at + 1 : at + 1 + size])
            return b""
        addressed = [motor for motor in self.motors if number in (motor.number, BROADCAST)]
        replies = b""
        for motor in addressed:
            before = motor.number
            if instruction == READ:
                address, size = parameters
                replies += self._reply(motor, bytes(motor.memory[address : address + size]))
            elif instruction == WRITE:
                motor.write(parameters[0], parameters[1:])
                replies += self._reply(motor, b"", before) if number != BROADCAST else b""
            elif instruction == PING:
                replies += self._reply(motor, b"")
        return replies

    def _reply(self, motor: Motor, data: bytes, number: int | None = None) -> bytes:
        body = bytes([motor.number if number is None else number, len(data) + 2, motor.error]) + data
        return b"\xff\xff" + body + bytes([~sum(body) & 0xFF])


class SimulatedBus(Motors):
    """Motors at `port`, a pseudo-terminal, answering in a thread within the `with` block."""

    def __init__(self, motors: Iterable[Motor]) -> None:
        super().__init__(motors)
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        self.port = os.ttyname(self._slave)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> SimulatedBus:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.unplug()

    def unplug(self) -> None:
        """Pull the cable: the port's other side is gone."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        for descriptor in (self._master, self._slave):
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def _serve(self) -> None:
        while not self._stop.is_set():
            if not select.select([self._master], [], [], 0.02)[0]:
                continue
            try:
                output = self.exchange(os.read(self._master, 4096))
            except OSError:
                return
            if output:
                os.write(self._master, output)


class MemoryPort:
    """A serial port without a system behind it: what does not come at once never comes, and waiting takes no time.

    Attributes:
        now: its clock in seconds, which moves while somebody waits in vain.
    """

    def __init__(self, motors: Motors) -> None:
        self.motors, self.baudrate, self.now = motors, 1_000_000, 0.0
        self.waiting = b""

    def perf_counter(self) -> float:
        return self.now

    @property
    def in_waiting(self) -> int:
        return len(self.waiting)

    def reset_input_buffer(self) -> None:
        self.waiting = b""

    def write(self, data: bytes) -> None:
        self.waiting += self.motors.exchange(data)

    def read(self, count: int) -> bytes:
        data, self.waiting = self.waiting[:count], self.waiting[count:]
        self.now += 0.0 if data else 0.004
        return data

    def fileno(self) -> int:
        raise OSError("a port in memory has no descriptor")

    def close(self) -> None:
        pass


if __name__ == "__main__":
    with SimulatedBus(Motor(number) for number in range(1, int(sys.argv[1]) + 1)) as served:
        print(served.port, flush=True)
        sys.stdin.read()

"""Packets of the Feetech servo protocol 0, which is Dynamixel's protocol 1.0 with two more instructions.

    request  FF FF id length instruction parameters… checksum      length = number of parameters + 2
    reply    FF FF id length error       parameters… checksum

The checksum is the complement of the low byte of the sum of everything between the header and the checksum. Numbers are little
endian. Source: the manual "Feetech SCS/STS communication protocol", checked against `feetech-servo-sdk` 1.0.0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum, IntFlag

HEADER = b"\xff\xff"
BROADCAST = 0xFE
MAX_ID = 252
REPLY_BYTES = 6
"""Bytes of a reply without parameters."""


class Instruction(IntEnum):
    """Instructions of requests."""

    PING = 0x01
    READ = 0x02
    WRITE = 0x03
    SYNC_READ = 0x82
    SYNC_WRITE = 0x83


class MotorFault(IntFlag):
    """Faults that a motor reports in each reply. Its data are valid all the same."""

    VOLTAGE = 1
    ANGLE = 2
    HEAT = 4
    CURRENT = 8
    OVERLOAD = 32

    def words(self) -> str:
        """Return the faults in words, with what to do about each."""
        return (
            " ".join(advice for fault, advice in _ADVICE.items() if fault & self) or f"unknown fault {self:d}"
        )


_ADVICE = {
    MotorFault.VOLTAGE: "its supply voltage is out of range (look at the power supply: 5 V or 7.4 V, or 12 V, as the motor's label says)",
    MotorFault.ANGLE: "its angle sensor fails (replace the motor)",
    MotorFault.HEAT: "it is too hot (let it cool, and look for what it pushes against)",
    MotorFault.CURRENT: "its current is too high (look for what blocks it)",
    MotorFault.OVERLOAD: "it is overloaded and has let go (take the load away; switching its torque off and on clears this)",
}


class PacketError(Exception):
    """A reply that can't be trusted; the message says why. The bus repeats the request."""


def checksum(body: bytes) -> int:
    """Return the checksum of a packet's bytes from the id to the last parameter."""
    return ~sum(body) & 0xFF


def request(motor: int, instruction: Instruction, parameters: bytes = b"") -> bytes:
    """Return a request's bytes."""
    body = bytes([motor, len(parameters) + 2, instruction]) + parameters
    return HEADER + body + bytes([checksum(body)])


def sync_read(address: int, size: int, motors: Sequence[int]) -> bytes:
    """Return the request for one register of several motors, which reply one after the other in this order."""
    return request(BROADCAST, Instruction.SYNC_READ, bytes([address, size, *motors]))


def sync_write(address: int, size: int, values: Mapping[int, int]) -> bytes:
    """Return the request that writes one register of several motors; no motor replies."""
    data = b"".join(bytes([motor]) + value.to_bytes(size, "little") for motor, value in values.items())
    return request(BROADCAST, Instruction.SYNC_WRITE, bytes([address, size]) + data)


def split_reply(packet: bytes, motor: int) -> tuple[MotorFault, bytes]:
    """Return the faults and the parameters of a reply.

    Args:
        packet: the whole reply and nothing else.
        motor: the id that must have replied.

    Raises:
        PacketError: the bytes are no reply of that motor.
    """
    if packet[:2] != HEADER:
        raise PacketError(f"the reply begins with {packet[:2].hex(' ')} in place of ff ff")
    if packet[3] != len(packet) - 4:
        raise PacketError(f"the reply has {len(packet) - 4} bytes after its length, and says {packet[3]}")
    if checksum(packet[2:-1]) != packet[-1]:
        raise PacketError("the checksum of the reply is wrong")
    if packet[2] != motor:
        raise PacketError(f"motor {packet[2]} replied in place of motor {motor}")
    return MotorFault(packet[4]), packet[5:-1]

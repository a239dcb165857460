"""The control table of the STS3215, the motor of the SO-100 and SO-101. Source: Feetech's memory table of the STS series."""

from __future__ import annotations

from dataclasses import dataclass

RESOLUTION = 4096
"""Steps of a turn."""
MODEL = 777
"""The model number of an STS3215."""
MODELS = {777: "STS3215", 2825: "STS3250", 11272: "SM8512BL", 1284: "SCS0009"}
BAUD_RATES = (1_000_000, 500_000, 250_000, 128_000, 115_200, 57_600, 38_400, 19_200)
"""Baud rates in the order of their codes in the register `BAUD_RATE`."""


@dataclass(frozen=True)
class Register:
    """A register of the control table.

    Attributes:
        name: Feetech's name.
        address: its first byte.
        size: 1 or 2 bytes.
        sign_bit: the bit that holds the sign; the bits below it hold the magnitude. None for numbers without a sign.
        maximum: the largest magnitude that a motor can report. A larger one is a transmission error.
    """

    name: str
    address: int
    size: int = 1
    sign_bit: int | None = None
    maximum: int | None = None

    def encode(self, value: int) -> int:
        """Return the stored form of a value.

        Raises:
            ValueError: the value does not fit into the register.
        """
        limit = (1 << (8 * self.size if self.sign_bit is None else self.sign_bit)) - 1
        if abs(value) > limit or (value < 0 and self.sign_bit is None):
            raise ValueError(
                f"{self.name} takes {'0' if self.sign_bit is None else -limit} to {limit}, found {value}"
            )
        return value if value >= 0 else 1 << self.sign_bit | -value  # type: ignore[operator]

    def decode(self, stored: int) -> int:
        """Return the value of a stored form."""
        if self.sign_bit is None:
            return stored
        magnitude = stored & ((1 << self.sign_bit) - 1)
        return -magnitude if stored >> self.sign_bit & 1 else magnitude


# EEPROM: kept without power, written while LOCK is 0.
FIRMWARE_MAJOR = Register("Firmware_Major_Version", 0)
FIRMWARE_MINOR = Register("Firmware_Minor_Version", 1)
MODEL_NUMBER = Register("Model_Number", 3, 2)
ID = Register("ID", 5)
BAUD_RATE = Register("Baud_Rate", 6)
RETURN_DELAY = Register("Return_Delay_Time", 7)
MIN_POSITION = Register("Min_Position_Limit", 9, 2)
MAX_POSITION = Register("Max_Position_Limit", 11, 2)
MAX_TORQUE = Register("Max_Torque_Limit", 16, 2)
PHASE = Register("Phase", 18)
P_COEFFICIENT = Register("P_Coefficient", 21)
D_COEFFICIENT = Register("D_Coefficient", 22)
I_COEFFICIENT = Register("I_Coefficient", 23)
PROTECTION_CURRENT = Register("Protection_Current", 28, 2)
HOMING_OFFSET = Register("Homing_Offset", 31, 2, sign_bit=11)
OPERATING_MODE = Register("Operating_Mode", 33)
OVERLOAD_TORQUE = Register("Overload_Torque", 36)

# SRAM: lost without power.
TORQUE_ENABLE = Register("Torque_Enable", 40)
ACCELERATION = Register("Acceleration", 41)
GOAL_POSITION = Register("Goal_Position", 42, 2, sign_bit=15)
LOCK = Register("Lock", 55)
PRESENT_POSITION = Register("Present_Position", 56, 2, sign_bit=15, maximum=2 * RESOLUTION)
PRESENT_LOAD = Register("Present_Load", 60, 2, sign_bit=10, maximum=1023)
PRESENT_VOLTAGE = Register("Present_Voltage", 62)
PRESENT_TEMPERATURE = Register("Present_Temperature", 63)
MAX_ACCELERATION = Register("Maximum_Acceleration", 85)

"""Questions and live tables for the person who sets up an arm."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from smolact.errors import ConfigError, RobotError

if TYPE_CHECKING:
    from rich.table import Table

    from smolact.robots.base import Robot, Teleoperator
    from smolact.robots.so_arm.arm import SOArm
    from smolact.robots.so_arm.setup import Row

REDRAW_S = 0.03
PATIENCE_S = 5.0
NOBODY = "Nobody answers: this asks questions, so run it in a terminal."


class TerminalGuide:
    """Asks on standard error, reads answers from standard input, and shows live tables on a terminal.

    Args:
        seconds: the longest time that a table is shown; None for no end.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self._seconds = math.inf if seconds is None else seconds

    def ask(self, question: str) -> str:
        """Return the line that the person types.

        Raises:
            RobotError: standard input is at its end.
        """
        sys.stderr.write(question)
        sys.stderr.flush()
        line = sys.stdin.readline() if sys.stdin else ""
        if not line:
            sys.stderr.write("\n")
            raise RobotError(NOBODY)
        return line.strip()

    def say(self, line: str) -> None:
        """Show a line."""
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    def watch(self, title: str, columns: Row, rows: Callable[[], Sequence[Row]]) -> None:
        """Show `rows()` again and again until Enter, or until the time is over; without a terminal, every `PATIENCE_S` seconds.

        Raises:
            RobotError: standard input is at its end.
        """
        from rich.console import Console
        from rich.live import Live

        console = Console(stderr=True, highlight=False)
        entered = _line_in_background()
        shown_at = float("-inf")
        ends_at = time.monotonic() + self._seconds
        with Live(console=console, auto_refresh=False) as live:
            while True:
                table = rows()
                if console.is_terminal:
                    live.update(make_table(columns, table, title), refresh=True)
                elif time.monotonic() - shown_at >= PATIENCE_S:
                    shown_at = time.monotonic()
                    console.print(make_table(columns, table, title))
                if entered.wait(REDRAW_S) or time.monotonic() >= ends_at:
                    break
        if entered.at_end:
            raise RobotError(NOBODY)


class _Entered(threading.Event):
    """Set when a line came, or standard input ended."""

    at_end = False


def _line_in_background() -> _Entered:
    entered = _Entered()

    def read() -> None:
        entered.at_end = not (sys.stdin and sys.stdin.readline())
        entered.set()

    threading.Thread(target=read, name="enter", daemon=True).start()
    return entered


def make_table(columns: Row, rows: Sequence[Row], title: str = "") -> Table:
    """Return a table for `rich`."""
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for at, column in enumerate(columns):
        table.add_column(column, justify="left" if at == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def arms_of(device: Robot | Teleoperator, command: str) -> Mapping[str, SOArm]:
    """Return the arms of a device by their prefix.

    Raises:
        ConfigError: the device is no SO-100 or SO-101.
    """
    from smolact.robots.so_arm.follower import SOFollower
    from smolact.robots.so_arm.leader import SOLeader

    if not isinstance(device, (SOFollower, SOLeader)):
        raise ConfigError(
            f"`smolact robot {command}` is for SO-100 and SO-101 arms, and this is '{device.name}'. Use so101_follower or so101_leader."
        )
    return device.arms

"""How a command shows that it lives: a bar on a terminal, and a line now and then where there is none.

`announce` is for the first line, before anything slow is imported; `progress_bar` for work whose amount is known; `stages` for several
such works, one after the other, that are over at once most of the time.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console

PATIENCE = 5.0
"""Seconds between two lines about the same work, where there is no terminal."""
QUICK = 2.0
"""Seconds that a work may take without a sign."""
REDRAW = 0.1
"""Seconds between two drawings of a bar. The work itself draws it: a thread that did would disturb what is timed."""


class Advance(Protocol):
    """What `progress_bar` yields."""

    def __call__(self, count: int = 1, note: str = "") -> None:
        """So many more are done; 0 to show only another note. A note stays until there is another one."""


def announce(line: str) -> None:
    """Write a line to standard error at once; of several processes the first one speaks."""
    if os.environ.get("RANK", "0") == "0":
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


@dataclass
class Count:
    """How far a work is, and the lines that say so.

    Attributes:
        total: how many there are to do.
        unit: of what, such as "episodes".
        done: how many are done; those that are when the count is made are not part of its rate.
        what: the name of the work, where there are several.
        note: the end of the lines, such as "success 84%".
    """

    total: int
    unit: str = ""
    done: int = 0
    what: str = ""
    note: str = ""
    _first: int = field(init=False)
    _began: float = field(init=False)
    _reached: float = field(init=False)
    _said: float = field(init=False)
    _is_over: bool = field(init=False)

    def __post_init__(self) -> None:
        """Start the clock."""
        self._first, self._is_over = self.done, self.done >= self.total
        self._began = self._reached = self._said = time.monotonic()

    def reach(self, done: int, note: str = "") -> None:
        """So many are done in all."""
        if done != self.done:
            self.done, self._reached = done, time.monotonic()
        self.note = note or self.note

    @property
    def title(self) -> str:
        """The line before the work: "600 episodes"."""
        return self._named(counted(self.total, self.unit.removesuffix("s")) if self.unit else str(self.total))

    @property
    def numbers(self) -> str:
        """What stands behind a bar: "3.1/s, 155 s left, success 84%"."""
        parts = []
        if self.done > self._first:
            rate = (self.done - self._first) / max(self._reached - self._began, 1e-9)
            parts.append(rate_text(rate))
            if self.done < self.total:
                # Episodes may end many at a time: until the next ones do, it is the time left that passes, not the rate that falls.
                left = (self.total - self.done) / rate - (time.monotonic() - self._reached)
                parts.append(f"{time_text(left)} left")
        return ", ".join([*parts, self.note] if self.note else parts)

    @property
    def line(self) -> str:
        """Where there is no bar: "120 of 600 episodes, 3.1/s, 155 s left, success 84%"."""
        reached = f"{self.done} of {self.total} {self.unit}".rstrip()
        return self._named(", ".join(part for part in (reached, self.numbers) if part))

    def next_line(self) -> str | None:
        """The line, if it is time for it: `PATIENCE` after the one before, and at the end of the work."""
        now, is_complete = time.monotonic(), self.done >= self.total
        if self._is_over or (now - self._said < PATIENCE and not is_complete):
            return None
        self._said, self._is_over = now, is_complete
        return self.line

    def _named(self, text: str) -> str:
        return f"{self.what}: {text}" if self.what else text


def counted(number: float, noun: str) -> str:
    """`1 minute`, `2 minutes`."""
    return f"{number:g} {noun}{'s' * (number != 1)}"


def rate_text(rate: float) -> str:
    """How many a second, or a minute if they are few."""
    if rate < 0.1:
        return f"{60 * rate:.1f}/min"
    return f"{rate:.1f}/s" if rate < 10 else f"{rate:.0f}/s"


def time_text(seconds: float) -> str:
    """A duration for a person: "155 s", "12 min", "3.5 h"."""
    seconds = max(0.0, seconds)
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@contextlib.contextmanager
def progress_bar(
    total: int, unit: str, *, done: int = 0, first: str = "", console: Console | None = None
) -> Iterator[Advance]:
    """Show how far a work is: a bar on a terminal; elsewhere a line at once, one every `PATIENCE` seconds, and one at the end.

    Args:
        total, unit: such as 600 and "episodes".
        done: how many were done before.
        first: what to say before the work; "600 episodes" when empty, where there is no terminal.
        console: where; standard error when None.
    """
    console = console or _standard_error()
    work = Count(total, unit, done)
    if first or not console.is_interactive:
        _say(console, first or work.title)
    with _bars(console) if console.is_interactive else _lines(console) as show:
        show(work)

        def advance(count: int = 1, note: str = "") -> None:
            work.reach(work.done + count, note)
            show(work)

        yield advance


@contextlib.contextmanager
def stages(*, console: Console | None = None) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a callback `(what, done, total)`, which shows nothing of what is over within `QUICK` seconds.

    On a terminal each `what` has a bar, and all go away at the end; elsewhere each has a line at once, and one every `PATIENCE` seconds.
    """
    console = console or _standard_error()
    began, counts, shown = time.monotonic(), dict[str, Count](), set[str]()
    with contextlib.ExitStack() as stack:
        show: Callable[[Count], None] | None = None

        def advance(what: str, done: int, total: int) -> None:
            nonlocal show
            if what not in counts or done < counts[what].done:  # it begins, or begins again
                counts[what] = Count(total, what=what, done=done)
            count = counts[what]
            count.reach(done)
            if time.monotonic() - began < QUICK:
                return
            if show is None:
                show = stack.enter_context(
                    _bars(console, transient=True) if console.is_interactive else _lines(console)
                )
            if what not in shown and not console.is_interactive:
                _say(console, count.line)
            else:
                show(count)
            shown.add(what)

        yield advance


@contextlib.contextmanager
def _bars(console: Console, transient: bool = False) -> Iterator[Callable[[Count], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
    from rich.table import Column

    label = TextColumn("{task.description}", markup=False)
    numbers = TextColumn(
        "{task.fields[numbers]}",
        markup=False,
        table_column=Column(no_wrap=True, ratio=1),  # where the terminal is narrow, this is what is cut off
    )
    tasks: dict[str, TaskID] = {}
    drawn = time.monotonic()
    with Progress(
        MofNCompleteColumn(),
        label,
        BarColumn(bar_width=24),
        numbers,
        console=console,
        transient=transient,
        expand=True,
        auto_refresh=False,
        redirect_stdout=False,  # or a result that goes to a file would go to the terminal
    ) as bar:

        def show(count: Count) -> None:
            nonlocal drawn
            is_new = count.what not in tasks
            if is_new:
                tasks[count.what] = bar.add_task(count.unit or count.what, total=count.total, numbers="")
            bar.update(tasks[count.what], completed=count.done, total=count.total, numbers=count.numbers)
            now = time.monotonic()
            if is_new or now - drawn >= REDRAW:
                drawn = now
                bar.refresh()

        yield show


@contextlib.contextmanager
def _lines(console: Console) -> Iterator[Callable[[Count], None]]:
    def show(count: Count) -> None:
        line = count.next_line()
        if line is not None:
            _say(console, line)

    yield show


def _say(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, markup=False, highlight=False)


def _standard_error() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False)

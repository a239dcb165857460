"""Progress output of commands: a bar on a terminal, an occasional line elsewhere.

`announce` prints the first line, before slow imports; `progress_bar` shows one task of known size, `stages` several
consecutive ones that are mostly short.
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
"""Seconds between two lines about the same task, without a terminal."""
QUICK = 2.0
"""Seconds that tasks may take without any output."""
REDRAW = 0.1
"""Seconds between two drawings of a bar. The task itself draws it: a thread would disturb timings."""


class Advance(Protocol):
    """The callback that `progress_bar` yields."""

    def __call__(self, count: int = 1, note: str = "") -> None:
        """Add `count` finished items; 0 changes only the note, which stays until the next one."""


def announce(line: str) -> None:
    """Write a line to standard error at once, in the process of rank 0 only."""
    if os.environ.get("RANK", "0") == "0":
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


@dataclass
class Count:
    """Progress of one task, and the text that describes it.

    Attributes:
        unit: the items' noun, such as "episodes".
        done: number of finished items; the initial ones do not count for the rate.
        what: name of the task, if there are several.
        note: end of the lines, such as "success 84%".
    """

    total: int
    unit: str = ""
    done: int = 0
    what: str = ""
    note: str = ""
    _initial: int = field(init=False)
    _started_at: float = field(init=False)
    _advanced_at: float = field(init=False)
    _printed_at: float = field(init=False)
    _is_finished: bool = field(init=False)

    def __post_init__(self) -> None:
        self._initial, self._is_finished = self.done, self.done >= self.total
        self._started_at = self._advanced_at = self._printed_at = time.monotonic()

    def reach(self, done: int, note: str = "") -> None:
        """Set the number of finished items."""
        if done != self.done:
            self.done, self._advanced_at = done, time.monotonic()
        self.note = note or self.note

    @property
    def title(self) -> str:
        """The line before the task: "600 episodes"."""
        return self._named(counted(self.total, self.unit.removesuffix("s")) if self.unit else str(self.total))

    @property
    def numbers(self) -> str:
        """The text after a bar: "3.1/s, 155 s left, success 84%"."""
        parts = []
        if self.done > self._initial:
            rate = (self.done - self._initial) / max(self._advanced_at - self._started_at, 1e-9)
            parts.append(rate_text(rate))
            if self.done < self.total:
                # Many episodes may end at once: until the next ones do, the time left falls, and the rate stays.
                left = (self.total - self.done) / rate - (time.monotonic() - self._advanced_at)
                parts.append(f"{time_text(left)} left")
        return ", ".join([*parts, self.note] if self.note else parts)

    @property
    def line(self) -> str:
        """The line without a bar: "120 of 600 episodes, 3.1/s, 155 s left, success 84%"."""
        reached = f"{self.done} of {self.total} {self.unit}".rstrip()
        return self._named(", ".join(part for part in (reached, self.numbers) if part))

    def next_line(self) -> str | None:
        """Return the line if it is due: `PATIENCE` after the last one, and at the end of the task."""
        now, is_complete = time.monotonic(), self.done >= self.total
        if self._is_finished or (now - self._printed_at < PATIENCE and not is_complete):
            return None
        self._printed_at, self._is_finished = now, is_complete
        return self.line

    def _named(self, text: str) -> str:
        return f"{self.what}: {text}" if self.what else text


def counted(number: float, noun: str) -> str:
    """`1 minute`, `2 minutes`."""
    return f"{number:g} {noun}{'s' * (number != 1)}"


def rate_text(rate: float) -> str:
    """Return a rate per second, or per minute if it is low."""
    if rate < 0.1:
        return f"{60 * rate:.1f}/min"
    return f"{rate:.1f}/s" if rate < 10 else f"{rate:.0f}/s"


def time_text(seconds: float) -> str:
    """Return a duration as text: "155 s", "12 min", "3.5 h"."""
    seconds = max(0.0, seconds)
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@contextlib.contextmanager
def progress_bar(
    total: int, unit: str, *, done: int = 0, first: str = "", console: Console | None = None
) -> Iterator[Advance]:
    """Show a task's progress: a bar on a terminal; elsewhere a line at once, every `PATIENCE` seconds, and at the end.

    Args:
        total, unit: such as 600 and "episodes".
        done: number of items finished before.
        first: the first line; when empty, "600 episodes" without a terminal, and none on one.
        console: the output; standard error when None.
    """
    console = console or _standard_error()
    work = Count(total, unit, done)
    if first or not console.is_interactive:
        _print_line(console, first or work.title)
    with _bars(console) if console.is_interactive else contextlib.nullcontext(_lines(console)) as show:
        show(work)

        def advance(count: int = 1, note: str = "") -> None:
            work.reach(work.done + count, note)
            show(work)

        yield advance


@contextlib.contextmanager
def stages(*, console: Console | None = None) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a callback `(what, done, total)`, which shows nothing in the first `QUICK` seconds.

    On a terminal each `what` has a bar, removed at the end; elsewhere a line at once and every `PATIENCE` seconds.
    """
    console = console or _standard_error()
    began, counts, shown = time.monotonic(), dict[str, Count](), set[str]()
    with contextlib.ExitStack() as stack:
        show: Callable[[Count], None] | None = None

        def advance(what: str, done: int, total: int) -> None:
            nonlocal show
            if what not in counts or done < counts[what].done:  # started or restarted
                counts[what] = Count(total, what=what, done=done)
            count = counts[what]
            count.reach(done)
            if time.monotonic() - began < QUICK:
                return
            if show is None:
                show = (
                    stack.enter_context(_bars(console, transient=True))
                    if console.is_interactive
                    else _lines(console)
                )
            if what not in shown and not console.is_interactive:
                _print_line(console, count.line)
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
        table_column=Column(no_wrap=True, ratio=1),  # cut off first on a narrow terminal
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
        redirect_stdout=False,  # else a result meant for a file would go to the terminal
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


def _lines(console: Console) -> Callable[[Count], None]:
    def show(count: Count) -> None:
        line = count.next_line()
        if line is not None:
            _print_line(console, line)

    return show


def _print_line(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, markup=False, highlight=False)


def _standard_error() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False)

"""Key presses in a terminal, without enter and without a display server."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
from collections.abc import Callable
from types import TracebackType

_FINAL = {b"A": "up", b"B": "down", b"C": "right", b"D": "left"}
_NAMES = {
    b"\r": "enter",
    b"\n": "enter",
    b" ": "space",
    b"\t": "tab",
    b"\x7f": "backspace",
    b"\x08": "backspace",
}
_WINDOWS_KEYS = {"H": "up", "P": "down", "M": "right", "K": "left"}


def split_keys(data: bytes) -> list[str]:
    """Return the key names of a terminal's bytes: `up`, `enter`, `space`, `escape`, or the letter itself.

    An arrow is ESC [ C or ESC O C; a lone ESC is `escape`.
    """
    keys = []
    while data:
        if data[:2] in (b"\x1b[", b"\x1bO"):
            end = next((index for index in range(2, len(data)) if 0x40 <= data[index] <= 0x7E), len(data) - 1)
            final = data[end : end + 1]
            if final in _FINAL:
                keys.append(_FINAL[final])
            data = data[end + 1 :]
            continue
        first, data = data[:1], data[1:]
        name = "escape" if first == b"\x1b" else _NAMES.get(first) or first.decode("ascii", "ignore")
        if name and name.isprintable():
            keys.append(name)
    return keys


def has_terminal() -> bool:
    """Whether this process has a terminal for key presses."""
    return sys.stdin is not None and sys.stdin.isatty()


class Keys:
    """Calls listeners with every key press in this process's terminal, within the `with` block.

    Without a terminal (a script, a test, CI) no key arrives and nothing else changes. Ctrl-C keeps its meaning.

    Args:
        listeners: called with the key's name, in a thread.
    """

    def __init__(self, *listeners: Callable[[str], None]) -> None:
        self._listeners = list(listeners)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._restore: Callable[[], None] = lambda: None

    @property
    def is_listening(self) -> bool:
        """Whether a terminal exists and is read."""
        return self._thread is not None

    def listen(self, listener: Callable[[str], None]) -> None:
        """Add a listener."""
        self._listeners.append(listener)

    def __enter__(self) -> Keys:
        if not has_terminal():
            return self
        read = self._read_windows if sys.platform == "win32" else self._open_terminal()
        self._thread = threading.Thread(target=read, name="keys", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._restore()

    def _notify(self, keys: list[str]) -> None:
        for key in keys:
            for listener in self._listeners:
                listener(key)

    def _open_terminal(self) -> Callable[[], None]:
        import termios
        import tty

        descriptor = sys.stdin.fileno()
        previous = termios.tcgetattr(descriptor)
        tty.setcbreak(descriptor)
        self._restore = lambda: termios.tcsetattr(descriptor, termios.TCSADRAIN, previous)

        def read() -> None:
            while not self._stop.is_set():
                if not select.select([descriptor], [], [], 0.1)[0]:
                    continue
                data = os.read(descriptor, 64)
                if not data:
                    return  # the terminal was closed
                if data == b"\x1b" and select.select([descriptor], [], [], 0.03)[0]:
                    data += os.read(descriptor, 64)  # an arrow whose bytes arrived separately
                self._notify(split_keys(data))

        return read

    def _read_windows(self) -> None:  # pragma: no cover
        with contextlib.suppress(ImportError):
            import msvcrt

            while not self._stop.wait(0.02):
                while msvcrt.kbhit():  # type: ignore[attr-defined,unused-ignore]
                    letter = msvcrt.getwch()  # type: ignore[attr-defined,unused-ignore]
                    if letter in ("\x00", "\xe0"):
                        self._notify([_WINDOWS_KEYS.get(msvcrt.getwch(), "")])  # type: ignore[attr-defined,unused-ignore]
                    else:
                        self._notify(split_keys(letter.encode("ascii", "ignore")))

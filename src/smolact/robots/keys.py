"""Keys as they are pressed in a terminal, without enter and without a display server."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
from collections.abc import Callable
from types import TracebackType

_FINAL = {b"A": "up", b"B": "down", b"C": "right", b"D": "left"}
_NAMES = {b"\r": "enter", b"\n": "enter", b" ": "space", b"\x7f": "backspace", b"\x08": "backspace"}
_WINDOWS = {"H": "up", "P": "down", "M": "right", "K": "left"}


def split_keys(data: bytes) -> list[str]:
    """The keys that a terminal's bytes stand for: `up`, `enter`, `space`, `escape`, or the letter itself.

    An arrow is ESC [ C or ESC O C; a lone ESC is the key of that name.
    """
    keys = []
    while data:
        if data[:2] in (b"\x1b[", b"\x1bO"):
            end = next((at for at in range(2, len(data)) if 0x40 <= data[at] <= 0x7E), len(data) - 1)
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
    """Whether this process has a terminal in which keys can be pressed."""
    return sys.stdin is not None and sys.stdin.isatty()


class Keys:
    """Tells listeners every key that is pressed in this process's terminal, while the `with` block lasts.

    Without a terminal (a script, a test, CI) there are no keys, and nothing else changes. Ctrl-C stays what it is.

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
        """Whether there is a terminal, and it is listened to."""
        return self._thread is not None

    def listen(self, listener: Callable[[str], None]) -> None:
        """Tell this one, too."""
        self._listeners.append(listener)

    def __enter__(self) -> Keys:
        if not has_terminal():
            return self
        read = self._windows if sys.platform == "win32" else self._terminal()
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

    def _tell(self, keys: list[str]) -> None:
        for key in keys:
            for listener in self._listeners:
                listener(key)

    def _terminal(self) -> Callable[[], None]:
        import termios
        import tty

        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
        tty.setcbreak(descriptor)
        self._restore = lambda: termios.tcsetattr(descriptor, termios.TCSADRAIN, before)

        def read() -> None:
            while not self._stop.is_set():
                if not select.select([descriptor], [], [], 0.1)[0]:
                    continue
                data = os.read(descriptor, 64)
                if not data:
                    return  # the terminal has gone
                if data == b"\x1b" and select.select([descriptor], [], [], 0.03)[0]:
                    data += os.read(descriptor, 64)  # an arrow whose bytes came one by one, over a slow line
                self._tell(split_keys(data))

        return read

    def _windows(self) -> None:  # pragma: no cover
        with contextlib.suppress(ImportError):
            import msvcrt

            while not self._stop.wait(0.02):
                while msvcrt.kbhit():  # type: ignore[attr-defined,unused-ignore]
                    letter = msvcrt.getwch()  # type: ignore[attr-defined,unused-ignore]
                    if letter in ("\x00", "\xe0"):
                        self._tell([_WINDOWS.get(msvcrt.getwch(), "")])  # type: ignore[attr-defined,unused-ignore]
                    else:
                        self._tell(split_keys(letter.encode("ascii", "ignore")))

"""A process that switches the torque off when this process ends without having done so, as after `kill -9`."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

logger = logging.getLogger(__name__)

# Waits until the pipe ends or the parent is gone, then writes the packet. It imports nothing of smolact, to start in 20 ms.
_CODE = """
import os, select, sys, time
port, packet, parent = int(sys.argv[1]), bytes.fromhex(sys.argv[2]), int(sys.argv[3])
while os.getppid() == parent:
    if select.select([0], [], [], 0.1)[0]:
        if os.read(0, 1):
            sys.exit()
        break
for _ in range(5):
    try:
        os.write(port, packet)
    except OSError:
        pass
    time.sleep(0.02)
"""


class TorqueGuard:
    """Watches this process from another one, on systems that pass open ports on (Linux and macOS; not Windows).

    Args:
        descriptor: the file descriptor of the open serial port.
        packet: the request that switches the torque off.
    """

    def __init__(self, descriptor: int | None, packet: bytes) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        if descriptor is None or os.name != "posix":
            logger.info("The motors keep their torque if this process is killed.")
            return
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _CODE, str(descriptor), packet.hex(), str(os.getpid())],
            stdin=subprocess.PIPE,
            pass_fds=[descriptor],
            start_new_session=True,  # Ctrl-C in the terminal is for the parent
        )

    def dismiss(self) -> None:
        """End the other process; the torque is off, or is to stay on."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        try:
            process.stdin.write(b"x")
            process.stdin.close()
        except OSError:  # it has ended by itself
            pass
        process.wait()

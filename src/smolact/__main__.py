"""`smolact`, and `python -m smolact`."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line and return its exit code. Ctrl-C while it is imported ends as it does later."""
    try:
        from smolact.cli.main import main as run
    except KeyboardInterrupt:
        sys.stderr.write("\nStopped.\n")
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())

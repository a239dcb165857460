"""Run pip, and say what it does: a line for each package that it fetches, with its size, and in the end how much that was.

pip is silent for minutes with --quiet, and without it a page of what is there already hides the rest.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time

UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "bytes": 1.0}
FETCHED = re.compile(
    r"\s*Downloading (?P<file>\S+?\.(?:whl|tar\.gz|zip))(?:\.metadata)? \((?P<number>[\d.]+) (?P<unit>\w+)\)"
)
PATIENCE = 10.0


def main() -> int:
    """Return what pip returned."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--progress-bar=off",
        *sys.argv[1:],
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    began = said = time.monotonic()
    size, packages, looked_at, tail = 0.0, 0, 0, list[str]()
    assert process.stdout is not None
    for line in process.stdout:
        tail = [*tail[-30:], line]
        found = FETCHED.match(line)
        if found and ".metadata" not in line:
            size, packages, said = (
                size + float(found["number"]) * UNITS.get(found["unit"], 0.0),
                packages + 1,
                time.monotonic(),
            )
            name = "-".join(found["file"].split("/")[-1].split("-")[:2])
            tell(f"  fetching {name}: {found['number']} {found['unit']}")
        elif line.startswith(("Collecting", "Requirement")):
            looked_at += 1
        elif line.startswith("Installing collected packages"):
            said = time.monotonic()
            tell(f"  installing {line.count(',') + 1} packages")
        if time.monotonic() - said > PATIENCE:
            said = time.monotonic()
            tell(f"  still at it ({looked_at} packages looked at)")
    if process.wait():
        sys.stderr.writelines(tail)
    else:
        tell(f"Fetched {size / 1e9:.2f} GB in {packages} packages; {time.monotonic() - began:.0f} s in all.")
    return process.returncode


def tell(line: str) -> None:
    """To standard error, at once."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())

"""Two checkouts of this repository in turn: did a change make a policy's engine slower?

    git worktree add ../before COMMIT
    python benchmarks/before_after.py --before=../before --rounds=5 --output=FILE -- --policy.type=smolvla --repeats=10

What follows `--` goes to `smolact bench`, which each checkout runs `--rounds` times in a process of its own, first the one and
then the other, and the other way round in the next round. A way's figure is the median of its rounds' medians.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent.parent


def main() -> None:
    """Measure both, and write a table."""
    ours, bench = sys.argv[1:], list[str]()
    if "--" in ours:
        ours, bench = ours[: ours.index("--")], ours[ours.index("--") + 1 :]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--before", type=Path, required=True, help="the other checkout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, required=True, help="the figures are added to it, as JSON")
    arguments = parser.parse_args(ours)
    trees = {"before": arguments.before, "after": HERE}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in trees}
    for number in range(arguments.rounds):
        for name in [*trees][:: -1 if number % 2 else 1]:
            found[name].append(measured(trees[name], bench))
    rows = {}
    for way in [row["way"] for row in found["after"][0]["rows"]]:
        before, after = (median(times(found[name], way)) for name in ("before", "after"))
        rows[way] = {"before_ms": before, "after_ms": after, "before / after": round(before / after, 3)}
    shown = {
        "commits": {name: commit(tree) for name, tree in trees.items()},
        "rounds": arguments.rounds,
        "machine": found["after"][0]["machine"],
        "versions": found["after"][0]["versions"],
        "ways": rows,
    }
    record = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    arguments.output.write_text(json.dumps({**record, " ".join(bench): shown}, indent=2) + "\n")
    for way, row in rows.items():
        sys.stdout.write(f"{way}: {row}\n")


def measured(tree: Path, bench: list[str]) -> dict[str, Any]:
    """What `smolact bench` of a checkout says."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "figures.json"
        sources = os.pathsep.join(
            str((tree / part).resolve()) for part in ("src", "packages/smolact-client/src")
        )
        subprocess.run(
            [sys.executable, "-m", "smolact", "bench", *bench, f"--output={output}"],
            env={**os.environ, "PYTHONPATH": sources},
            cwd=folder,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        figures: dict[str, Any] = json.loads(output.read_text())
    return figures


def times(runs: list[dict[str, Any]], way: str) -> list[float]:
    """A way's medians in milliseconds, one a round."""
    return [row["median"] for run in runs for row in run["rows"] if row["way"] == way]


def commit(tree: Path) -> str:
    """The commit that is checked out."""
    return subprocess.check_output(
        ["git", "-C", str(tree), "rev-parse", "--short", "HEAD"], text=True
    ).strip()


if __name__ == "__main__":
    main()

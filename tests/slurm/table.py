"""Print the fault table from what ``tests/slurm/test_faults.py`` wrote."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    """One line a fault, in Markdown."""
    print("| fault | outcome | shards computed again | seconds lost |")
    print("|---|---|---|---|")
    for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        again = "" if row["again"] is None else row["again"]
        lost = "" if row["lost"] is None else f"{row['lost']:.0f}"
        print(f"| {row['fault']} | {row['outcome']} | {again} | {lost} |")


if __name__ == "__main__":
    main()

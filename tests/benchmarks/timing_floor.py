"""Read, whole, the tables that the timing calibration needs: its floor. Imports included."""

from __future__ import annotations

import sys

import tables

IMPACT = "/dl2/event/telescope/impact/HillasReconstructor"
SHARED = (
    "/dl1/event/telescope/trigger",
    "/dl1/event/subarray/trigger",
    "/dl2/event/subarray/geometry/HillasReconstructor",
)


def main() -> None:
    """Read the files that are named."""
    for path in sys.argv[1:]:
        with tables.open_file(path) as file:
            for table in [*file.iter_nodes(IMPACT, "Table"), *map(file.get_node, SHARED)]:
                table.read()


if __name__ == "__main__":
    main()

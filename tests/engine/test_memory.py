"""Memory is bounded by the plan, not by the number of files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from faults import finish, start_python

if TYPE_CHECKING:
    from pathlib import Path

SHARD_VALUES = 30_000  # 240 kB a file: 200 files held at once would add half of what Python takes

_MEASURE = """
import json, resource, sys
from pathlib import Path
from faults import Scripted, run
inputs, output, where = sys.argv[1:]
result = run(Scripted(), inputs, Path(output), cluster=where, workers=1)
driver = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"driver": driver, "workers": result.account.total.peak_bytes}))
"""


def _write(directory: Path, count: int) -> Path:
    directory.mkdir()
    values = np.random.default_rng(0).normal(size=SHARD_VALUES)
    for number in range(count):
        values[0] = number
        np.save(directory / f"{number}.npy", values)
    return directory


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("where", ["serial", "local"])
def test_peak_memory_is_flat_from_8_to_200_files(tmp_path, where):
    peaks = {}
    for count in (8, 200):
        directory = _write(tmp_path / f"{count}", count)
        process = start_python(_MEASURE, directory, tmp_path / f"{count}.h5", where)
        code, printed, complaints = finish(process)
        assert code == 0, complaints
        peaks[count] = json.loads(printed)
    for who in ("driver", "workers"):
        ratio = peaks[200][who] / peaks[8][who]
        assert 0.9 < ratio < 1.1, (who, peaks)

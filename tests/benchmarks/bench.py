"""What calibdask costs, against the peer and against the floor: ``make bench``.

Every number is measured beside what it is compared with, on the same data, in the same run. Times
are CPU seconds, user and system, of a process and all its children unless they are called wall
time: a busy machine moves those little. Nothing here fails because something was slow.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import hashlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import tables

from calibdask.array import simulate
from calibdask.engine.provenance import cpu_class, versions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

HERE = Path(__file__).parent
CONFIG = HERE / "config.yaml"
IMAGES = HERE / "config_images.yaml"
CROSS = HERE / "config_cross.yaml"
CALIBDASK = Path(sys.executable).with_name("calibdask")
SAMPLING_S = 0.1
_PR_SET_CHILD_SUBREAPER = 36  # of linux/prctl.h
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

type Command = Sequence[str | Path]


# -- results ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One number, what it is compared with, and the target.

    Attributes
    ----------
    name : str
        What was measured.
    ours, other : float
        Both in `unit`; `other` is NaN where there is nothing to compare with.
    unit : str
        "s", "MB".
    against : str
        What `other` is.
    most : float, optional
        The target: the greatest ours/other.
    """

    name: str
    ours: float
    unit: str
    other: float = math.nan
    against: str = ""
    most: float | None = None

    @property
    def ratio(self) -> float:
        """Ours over the other."""
        return self.ours / self.other

    @property
    def verdict(self) -> str:
        """Whether the target was met."""
        if self.most is None or math.isnan(self.ratio):
            return ""
        return "met" if self.ratio <= self.most else "NOT MET"

    def cells(self) -> list[str]:
        """Return the columns of the table."""
        known = not math.isnan(self.ratio)
        return [
            self.name,
            f"{_rounded(self.ours)} {self.unit}",
            f"{_rounded(self.other)} {self.unit}" if known else "",
            self.against,
            _times(self.ratio) if known else "",
            "" if self.most is None else f"<= {_times(self.most)}",
            self.verdict,
        ]


def _rounded(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _times(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio > 0.5 else f"1/{1 / ratio:.1f}"


def format_table(rows: Sequence[Row]) -> str:
    """Write rows below each other in columns."""
    head = ["measured", "ours", "other", "the other is", "ours/other", "target", ""]
    cells = [head, *(row.cells() for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


# -- measuring ----------------------------------------------------------------------------------


@dataclass
class Cost:
    """What a command cost.

    Attributes
    ----------
    wall_s, cpu_s : float
        Of the command and all its children.
    driver_mb, worker_mb : float
        Peak resident memory of the command's own process, and of the largest Dask worker (0
        without one).
    total_mb : float
        Sum of the peaks of all its processes: not less than its peak.
    stdout : str
        What it printed.
    """

    wall_s: float
    cpu_s: float
    driver_mb: float
    worker_mb: float
    total_mb: float
    stdout: str


@dataclass
class _Peaks:
    """Highest resident memory seen of each process, in MB."""

    by_pid: dict[int, float] = field(default_factory=dict)
    workers: set[int] = field(default_factory=set)

    def look(self, pid: int) -> None:
        with suppress(psutil.NoSuchProcess):
            family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
            for one in family:
                # The kernel keeps the peak itself: between two looks nothing is lost.
                with suppress(psutil.NoSuchProcess, OSError):
                    status = Path(f"/proc/{one.pid}/status").read_text(encoding="ascii")
                    for line in status.splitlines():
                        if line.startswith("VmHWM:"):
                            self.by_pid[one.pid] = int(line.split()[1]) / 1024
                    # Workers are forked from one process, which imported everything for them.
                    if one.pid != pid and one.ppid() != pid:
                        self.workers.add(one.pid)


def _children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


def _cpu_of_orphans(older: set[int]) -> float:
    """Wait for what a command left running, and give its CPU seconds and its children's.

    Worker processes are children of a process that the command starts and does not wait for.
    """
    cpu_s = 0.0
    while orphans := _children() - older:
        for pid in orphans:
            _, _, usage = os.wait4(pid, 0)
            cpu_s += usage.ru_utime + usage.ru_stime
    return cpu_s


def run(command: Command, folder: Path) -> Cost:
    """Run a command to its end in a folder and tell what it cost.

    Raises
    ------
    RuntimeError
        It failed; with the end of what it printed.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans become our children
    older = _children()
    peaks = _Peaks()
    with (folder / "stdout.txt").open("w+") as out, (folder / "stderr.txt").open("w+") as err:
        start = time.perf_counter()
        process = subprocess.Popen(
            [str(word) for word in command],
            stdout=out,
            stderr=err,
            cwd=folder,
            env=os.environ | ONE_THREAD,
        )
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            peaks.look(process.pid)
            time.sleep(SAMPLING_S)
        wall_s = time.perf_counter() - start
        cpu_s = usage.ru_utime + usage.ru_stime + _cpu_of_orphans(older)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        stdout = out.read()
        if process.returncode:
            tail = (stdout + err.read())[-2000:]
            raise RuntimeError(f"exit code {process.returncode} of {command}:\n{tail}")
    driver_mb = peaks.by_pid.get(process.pid, 0.0)
    if len(peaks.by_pid) <= 1:  # nobody else: the kernel's last word covers the last moment too
        driver_mb = usage.ru_maxrss / 1024
    others_mb = sum(mb for pid, mb in peaks.by_pid.items() if pid != process.pid)
    return Cost(
        wall_s=wall_s,
        cpu_s=cpu_s,
        driver_mb=driver_mb,
        # One that has just ended has a name, but no memory any more.
        worker_mb=max(
            (mb for pid, mb in peaks.by_pid.items() if pid in peaks.workers), default=0.0
        ),
        total_mb=driver_mb + others_mb,
        stdout=stdout,
    )


def cpu_until_first_shard(command: Command, folder: Path) -> float:
    """Run a job and give its CPU seconds when it tells that its first shard is done.

    Raises
    ------
    RuntimeError
        It never told.
    """
    with subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=os.environ | ONE_THREAD,
    ) as process:
        watched = psutil.Process(process.pid)
        cpu_s = None
        told = []
        for line in process.stderr or ():
            told.append(line)
            if cpu_s is None and line.startswith("{") and json.loads(line)["event"] == "TaskEnded":
                times = watched.cpu_times()
                cpu_s = times.user + times.system
    if cpu_s is None:
        raise RuntimeError(f"no shard was done by {command}:\n{''.join(told)[-2000:]}")
    return float(cpu_s)


# -- the benchmarks -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """What the benchmarks share: where the data are, who the peer is, how large all is."""

    data: Path
    scratch: Path
    peer: Path | None
    scale: float
    repeats: int

    def simulated(self, n_files: int, n_telescope_events: float) -> list[Path]:
        """Return files of the mixed array (36 telescopes), made when they are not there yet."""
        events = max(int(n_telescope_events * self.scale), 100 * n_files)
        source = Path(simulate.__file__).read_bytes()
        version = hashlib.sha256(source).hexdigest()[:8]
        folder = self.data / f"array-{n_files}-{events}-{version}"
        if not folder.exists():
            _say(f"simulating {events} telescope-events in {n_files} files")
            self.data.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(dir=self.data, prefix="partial-"))
            _simulate(partial / "made", n_files, events, self.scratch)
            (partial / "made").rename(folder)
            partial.rmdir()
        return sorted(folder.glob("*.h5"))

    def folder(self, name: str) -> Path:
        """Return a new folder to work in."""
        return Path(tempfile.mkdtemp(dir=self.scratch, prefix=f"{name}-"))

    def inter_calibration(
        self, paths: Iterable[Path], *options: str, config: Path = CONFIG
    ) -> tuple[Cost, int]:
        """Run the whole job from the shell; give its cost and the pairs it selected."""
        folder = self.folder("job")
        output = folder / "inter.h5"
        cost = run([*_job(paths, output, config), *options], folder)
        provenance = json.loads(output.with_suffix(".provenance.json").read_text("utf-8"))
        shutil.rmtree(folder)
        return cost, int(provenance["cut_flow"]["equidistant pairs"])

    # -- 1

    def warm(self) -> list[Row]:
        """One process, one file, everything imported and cached."""
        (path,) = self.simulated(1, 150e3)
        folder = self.folder("warm")
        script = HERE / "warm.py"
        cost = run([sys.executable, script, CONFIG, path, "--repeats", str(self.repeats)], folder)
        ours = json.loads(cost.stdout)
        floor_s, map_s, all_s = (min(ours[name]) for name in ("floor", "map", "all"))
        floor = "reading the tables"
        rows = [
            Row("warm, one file: map (read, pair, summarise)", map_s, "s", floor_s, floor, 2.0),
            Row("warm, one file: all stages", all_s, "s", floor_s, floor, 3.0),
        ]
        if self.peer is not None:
            script = HERE / "peer_warm.py"
            cost = run([self.peer, script, CONFIG, path, folder, "--repeats", "2"], folder)
            peer = json.loads(cost.stdout.splitlines()[-1])
            _same(ours["pairs"], peer["pairs"])
            step = "peer's asymmetry step"
            rows.append(Row("warm, one file: map", map_s, "s", min(peer["warm"]), step, 1 / 15))
        return rows

    # -- 2

    @functools.cache  # noqa: B019  one Bench lives as long as the program
    def _peer_job(
        self, paths: tuple[Path, ...], kind: str = "energy", config: Path = CONFIG
    ) -> tuple[float, float, int]:
        """Run both steps of the peer: CPU seconds, largest process in MB, pairs."""
        if self.peer is None:
            raise ValueError("there is no peer")
        folder = self.folder("peer")
        asymmetries = folder / "asymmetries"
        asymmetries.mkdir()
        first = self.peer.with_name(f"calibpipe-{kind}-asymmetry-estimation")
        second = self.peer.with_name("calibpipe-inter-calibration")
        commands: list[Command] = [
            [first, "-c", config, "-i", path, "-o", asymmetries / path.name] for path in paths
        ]
        commands.append([second, "-c", config, "-i", asymmetries, "-o", folder / "inter.h5"])
        costs = []
        for number, one in enumerate(commands):
            _say(f"peer: step {number + 1} of {len(commands)}")
            costs.append(run(one, folder))
        n_pairs = 0
        for path in asymmetries.glob("*.h5"):
            with tables.open_file(path) as file:
                n_pairs += int(file.get_node(f"/{kind}_asymmetry/events").nrows)
        return sum(one.cpu_s for one in costs), max(one.total_mb for one in costs), n_pairs

    def job(self) -> list[Row]:
        """The whole job from the shell."""
        paths = self.simulated(8, 1.2e6)
        variants = {
            "local, 2 workers": ("--cluster", "local", "--workers", "2"),
            "local, 2 workers, no report": ("--cluster", "local", "--workers", "2", "--no-report"),
            "serial": ("--cluster", "serial"),
        }
        measured: dict[str, tuple[float, float]] = {}
        n_pairs = 0
        for name, options in variants.items():
            runs = [self.inter_calibration(paths, *options) for _ in range(min(self.repeats, 3))]
            n_pairs = runs[0][1]
            measured[name] = (
                min(cost.cpu_s for cost, _ in runs),
                max(cost.total_mb for cost, _ in runs),
            )
        peer_s, peer_mb = math.nan, math.nan
        if self.peer is not None:
            peer_s, peer_mb, peer_pairs = self._peer_job(tuple(paths))
            _same(n_pairs, peer_pairs)
        rows = []
        for name, (cpu_s, total_mb) in measured.items():
            most = None if "report" in name else 1 / 10
            rows.append(Row(f"whole job, {name}: CPU", cpu_s, "s", peer_s, "peer, 2 steps", most))
            against = "peer's largest step"
            label = f"whole job, {name}: memory, sum"
            rows.append(Row(label, total_mb, "MB", peer_mb, against))
        return rows

    def images(self) -> list[Row]:
        """Both steps of image sizes from the shell, corrections and systematic error included."""
        paths = self.simulated(8, 1.2e6)
        cost, n_pairs = self.inter_calibration(paths, "--cluster", "serial", config=IMAGES)
        peer_s, peer_mb = math.nan, math.nan
        if self.peer is not None:
            peer_s, peer_mb, peer_pairs = self._peer_job(tuple(paths), "image", IMAGES)
            _same(n_pairs, peer_pairs)
        name = "image sizes, serial"
        return [
            Row(f"{name}: CPU", cost.cpu_s, "s", peer_s, "peer, 2 steps", 1 / 10),
            Row(f"{name}: memory, sum", cost.total_mb, "MB", peer_mb, "peer's largest step"),
        ]

    def cross(self) -> list[Row]:
        """Scale of the types, with the ratios of an inter-calibration given, and in one network.

        All pairs of telescopes of two types count, as the peer ignores filters of events. One
        network replaces all three steps of the peer.
        """
        paths = self.simulated(8, 1.2e6)
        folder = self.folder("cross")
        inter = folder / "inter.h5"
        run([*_job(paths, inter), "--cluster", "serial", "--no-report"], folder)
        command = [CALIBDASK, "cross-calibration", "-c", CROSS, "--cluster", "serial"]
        peer_s, steps_s, peer_mb, peer_off = math.nan, math.nan, math.nan, math.nan
        if self.peer is not None:
            theirs = folder / "peer.h5"
            shutil.copy(inter, theirs)  # it writes into the file that it reads
            tool = self.peer.with_name("calibpipe-cross-calibration")
            cost = run([tool, "-c", CROSS, "-i", theirs, "-d", paths[0].parent], folder)
            peer_s, peer_mb = cost.cpu_s, cost.total_mb
            peer_off = _off_scale(theirs, paths[0].parent)
            steps_s = peer_s + self._peer_job(tuple(paths))[0]
        rows = []
        for name, more, other_s, step in (
            ("ratios given", [inter], peer_s, "peer's third step"),
            ("ratios given, no report", [inter, "--no-report"], peer_s, "peer's third step"),
            ("one network", [], steps_s, "peer, 3 steps"),
        ):
            output = folder / f"{name}.h5".replace(" ", "_")
            cost = run([*command, "-o", output, "-i", *paths, *more], folder)
            off = _off_scale(output, paths[0].parent)
            label = f"cross-calibration, {name}, serial"
            rows += [
                Row(f"{label}: CPU", cost.cpu_s, "s", other_s, step, 1 / 10),
                Row(f"{label}: memory, sum", cost.total_mb, "MB", peer_mb, "peer's third step"),
                Row(f"{label}: scale of a type, off by", off, "%", peer_off, "peer"),
            ]
        shutil.rmtree(folder)
        return rows

    def timing(self) -> list[Row]:
        """The whole timing job from the shell, and how far its offsets are from the truth."""
        paths = self.simulated(8, 1.2e6)
        folder = self.folder("timing")
        output = folder / "timing.h5"
        command = [CALIBDASK, "timing-calibration", "-o", output, "--cluster", "serial"]
        cost = run([*command, "-i", *paths], folder)
        floor = run([sys.executable, HERE / "timing_floor.py", *paths], folder)
        peer_s, peer_mb = math.nan, math.nan
        if self.peer is not None:
            peer_s, peer_mb, _ = self._peer_job(tuple(paths))
        truth = json.loads((paths[0].parent / "truth.json").read_text("utf-8"))["time_offset_ns"]
        with tables.open_file(output) as file:
            found = file.get_node("/dl2/monitoring/subarray/timing_calibration").read()
        true_ns = {int(tel_id): offset for tel_id, offset in truth.items()}
        # The first telescope of the array is the reference.
        deviation_ns = [
            float(row["value"]) - true_ns[int(row["tel_id"])] + true_ns[int(found["tel_id"][0])]
            for row in found[1:]
        ]
        rms_ns = math.sqrt(statistics.fmean(value**2 for value in deviation_ns))
        name = "timing, serial"
        return [
            Row(f"{name}: CPU", cost.cpu_s, "s", peer_s, "peer's energy steps", 1 / 10),
            Row(f"{name}: CPU", cost.cpu_s, "s", floor.cpu_s, "reading the tables"),
            Row(f"{name}: memory, sum", cost.total_mb, "MB", peer_mb, "peer's largest step"),
            Row(f"{name}: rms deviation of offsets", rms_ns, "ns", 0.1, "limit", 1.0),
        ]

    # -- 3

    def startup(self) -> list[Row]:
        """How long until help appears, and until the first shard is done."""
        folder = self.folder("startup")
        helped, imported = [], []
        for _ in range(2 * self.repeats + 1):
            helped.append(run([CALIBDASK, "--help"], folder))
            imported.append(run([sys.executable, "-c", "import numpy"], folder))
        rows = []
        for kind in ("cpu", "wall"):
            ours, other = (
                statistics.median(getattr(cost, f"{kind}_s") for cost in costs)
                for costs in (helped, imported)
            )
            rows.append(Row(f"calibdask --help: {kind}", ours, "s", other, "import numpy", 2.5))
        (path,) = self.simulated(1, 1e3)
        first = []
        for number in range(self.repeats):
            command = _job([path], folder / f"tiny_{number}.h5")
            first.append(cpu_until_first_shard([*command, "--cluster", "serial"], folder))
        name = "serial: CPU until the first shard is done"
        return [*rows, Row(name, statistics.median(first), "s", 2.5, "limit", 1.0)]

    # -- 4

    def memory(self) -> list[Row]:
        """Whether memory grows with the number of files."""
        local = ("--cluster", "local", "--workers", "2")
        (tiny,) = self.simulated(1, 1e3)
        many = self.simulated(200, 1.2e6)
        imports, _ = self.inter_calibration([tiny], *local)
        few, _ = self.inter_calibration(many[:8], *local)
        all_of_them, _ = self.inter_calibration(many, *local)
        above_mb = all_of_them.worker_mb - imports.worker_mb
        return [
            Row("memory of the driver, 200 files", all_of_them.driver_mb, "MB", few.driver_mb,
                "8 files", 1.1),
            Row("memory of a worker, 200 files", all_of_them.worker_mb, "MB", few.worker_mb,
                "8 files", 1.1),
            Row("memory of a worker above its imports", above_mb, "MB", 150.0, "limit", 1.0),
            Row("200 files: CPU", all_of_them.cpu_s, "s"),
        ]  # fmt: skip

    # -- 5

    def simulation(self) -> list[Row]:
        """A million simulated telescope-events."""
        events = max(int(1e6 * self.scale), 800)
        folder = self.folder("simulate")
        cost = _simulate(folder / "made", 8, events, folder)
        shutil.rmtree(folder / "made")
        return [
            Row("simulate 1e6 telescope-events: CPU", cost.cpu_s, "s", 60.0, "limit", 1.0),
            Row("simulate 1e6 telescope-events: wall", cost.wall_s, "s", 60.0, "limit", 1.0),
            Row("simulate 1e6 telescope-events: memory", cost.total_mb, "MB"),
        ]


def _job(paths: Iterable[Path], output: Path, config: Path = CONFIG) -> Command:
    """Return the command of the inter-calibration."""
    return [CALIBDASK, "inter-calibration", "-c", config, "-o", output, "-i", *paths]


def _off_scale(result: Path, folder: Path) -> float:
    """Return the largest deviation of a type's scaling factor from the truth, in percent."""
    true = json.loads((folder / "truth.json").read_text("utf-8"))["throughput"]
    with tables.open_file(result) as file:
        rows = file.get_node("/dl2/monitoring/subarray/cross_calibration/scaling_factors").read()
    references = {b"LST": "1", b"MST": "5", b"SST": "30"}
    return max(
        100 * abs(float(row["scaling_factor"]) * true["5"] / true[references[row["tel_type"]]] - 1)
        for row in rows
    )


def _simulate(folder: Path, n_files: int, n_telescope_events: int, scratch: Path) -> Cost:
    made: Command = [CALIBDASK, "simulate", "array", "-o", folder, "--files", str(n_files)]
    return run([*made, "--telescope-events", str(n_telescope_events)], scratch)


def _same(ours: int, peer: int) -> None:
    """Check that both did the same work: times of different work do not compare."""
    if ours != peer:
        raise RuntimeError(f"calibdask selected {ours} pairs and the peer {peer}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def describe_machine(peer: Path | None) -> str:
    """Say what the numbers were measured with."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        if line.startswith("model name")
    ]
    facts: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "processor": f"{models[0] if models else 'unknown'}, {cpu_class()}",
        "cores": len(os.sched_getaffinity(0)),
        "memory": f"{psutil.virtual_memory().total / 1e9:.0f} GB",
        "load before": " ".join(f"{load:.1f}" for load in os.getloadavg()),
        "ours": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }
    if peer is None:
        facts["peer"] = "none: its rows are missing"
    else:
        ask = (
            "from importlib.metadata import version\n"
            "for name in ('ctao-calibpipe', 'ctapipe', 'numpy', 'tables'):"
            " print(name, version(name), end=', ')"
        )
        answer = subprocess.run([peer, "-c", ask], check=True, capture_output=True, text=True)
        facts["peer"] = answer.stdout.rstrip(", ")
    return "\n".join(f"{name:<12} {value}" for name, value in facts.items())


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Run the benchmarks that were asked for and print their table."""
    benchmarks: dict[str, Callable[[Bench], list[Row]]] = {
        "warm": Bench.warm,
        "job": Bench.job,
        "images": Bench.images,
        "cross": Bench.cross,
        "timing": Bench.timing,
        "startup": Bench.startup,
        "memory": Bench.memory,
        "simulate": Bench.simulation,
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=benchmarks, default=list(benchmarks))
    parser.add_argument("--peer", type=Path, help="Python with ctao-calibpipe; none: no comparison")
    parser.add_argument("--output", type=Path, help="write the table here as well")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--scale", type=float, default=1.0, help="size of the data, to try things")
    given = parser.parse_args(arguments)
    if given.peer is not None:
        given.peer = given.peer.absolute()  # not resolved: a link into another Python is the venv
    with tempfile.TemporaryDirectory(prefix="calibdask-bench-") as temporary:
        scratch = Path(temporary)
        data = Path(os.environ.get("CALIBDASK_BENCH_DATA") or scratch / "data").absolute()
        bench = Bench(data, scratch, given.peer, given.scale, given.repeats)
        machine = describe_machine(given.peer)
        if given.scale != 1:
            machine += f"\nscale        {given.scale:g}: sizes in the names below are not true"
        rows = []
        for name in given.only:
            _say(f"{name} ...")
            rows += benchmarks[name](bench)
    text = f"{machine}\n{'load after':<12} {' '.join(f'{x:.1f}' for x in os.getloadavg())}\n\n"
    text += format_table(rows) + "\n"
    print(text, end="")
    if given.output is not None:
        given.output.write_text(text, encoding="utf-8")
    return rows


if __name__ == "__main__":
    main()

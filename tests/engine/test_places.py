"""Where a run writes: nothing that is read is ever replaced, and a refused run leaves nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from faults import TESTS, Scripted, run, write_inputs

from calibdask.engine.places import companion
from calibdask.errors import ConfigError


@pytest.fixture
def paths(tmp_path):
    return write_inputs(tmp_path / "data", 3)


def _everything(directory):
    """Every path below a directory, with its contents."""
    return {
        path.relative_to(directory): path.read_bytes() if path.is_file() else path.lstat().st_mode
        for path in directory.rglob("*")
    }


def _refused(tmp_path, inputs, output, match, *, calibration=None, **options):
    """Run with leave to overwrite; check that it is refused in one line and leaves nothing."""
    before = _everything(tmp_path)
    with pytest.raises(ConfigError, match=match) as caught:
        run(calibration or Scripted(), inputs, output, overwrite=True, **options)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert "choose" in str(caught.value) or "name" in str(caught.value)
    assert _everything(tmp_path) == before


# -- what is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("named", [True, False], ids=["named", "found in a directory"])
def test_an_input_is_never_replaced(tmp_path, paths, named):
    inputs = paths if named else tmp_path / "data"
    _refused(tmp_path, inputs, paths[1], "is the input .*001.npy")


def test_nor_is_it_by_a_symbolic_or_a_hard_link(tmp_path, paths):
    (tmp_path / "link.h5").symlink_to(paths[0])
    os.link(paths[0], tmp_path / "hard.h5")
    (tmp_path / "there").symlink_to(tmp_path / "data")
    for output in ("link.h5", "hard.h5", "there/000.npy"):
        _refused(tmp_path, paths, tmp_path / output, "is the input")


def test_nor_by_a_relative_path(tmp_path, paths, monkeypatch):
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    _refused(tmp_path, paths, "../sub/../data/000.npy", "is the input")


def test_an_input_that_is_a_link_keeps_what_it_leads_to(tmp_path, paths):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link.npy").symlink_to(paths[0])
    _refused(tmp_path, tmp_path / "in", paths[0], "is the input")
    _refused(tmp_path, tmp_path / "in", tmp_path / "data", "directory that holds the input")


def test_neither_a_list_of_inputs_nor_a_configuration_is(tmp_path, paths):
    listing = tmp_path / "list.txt"
    listing.write_text("\n".join(map(str, paths)))
    _refused(tmp_path, f"@{listing}", listing, "is the list of inputs")
    config = tmp_path / "config.yaml"
    config.write_text("{}\n")
    command = ["scripted", "-c", config, "-i", paths[0], "-o", config, "--overwrite"]
    before = _everything(tmp_path)
    code = "import faults; faults.command_line()"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, command)],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(TESTS)},
    )  # fmt: skip
    assert done.returncode == 2
    assert f"is the configuration {config}" in done.stderr
    assert _everything(tmp_path) == before


class Reading(Scripted):
    """Reads a file beside its inputs."""

    name = "reading"

    def also_read(self):
        return [self.journal]


def test_nor_is_a_product_that_the_configuration_names(tmp_path, paths):
    other = tmp_path / "bias"
    other.mkdir()
    (other / "map").write_text("precious")
    calibration = Reading(journal=str(other))
    for output, match in (
        (other, "is the product"),
        (other / "map", "lies inside the product"),
        (other / "new.h5", "lies inside the product"),
    ):
        _refused(tmp_path, paths, output, match, calibration=calibration)


def test_the_jobs_of_a_camera_say_which_products_they_read(tmp_path):
    from calibdask.api import load_config

    prepared = load_config("gain", (), {"Gain.bias": str(tmp_path / "bias")})
    assert list(prepared.calibration.also_read()) == [str(tmp_path / "bias")]


@pytest.mark.parametrize("name", ["out.ecsv", "out.html", "out.provenance.json"])
def test_a_companion_replaces_no_input_either(tmp_path, paths, name):
    shutil.copy(paths[0], tmp_path / name)
    inputs = [tmp_path / name, paths[1]]
    _refused(tmp_path, inputs, tmp_path / "out.h5", f"{name}.*is the input", report=True)


@pytest.mark.parametrize("option", ["provenance_log", "log_file", "performance_report", "workdir"])
def test_nothing_else_is_written_over_an_input(tmp_path, paths, option):
    _refused(tmp_path, paths, tmp_path / "out.h5", "is the input", **{option: paths[0]})


def test_a_directory_that_holds_inputs_is_neither_product_nor_work_directory(tmp_path, paths):
    for place in (tmp_path / "data", tmp_path):
        _refused(tmp_path, paths, place, "directory that holds the input")
        _refused(tmp_path, paths, tmp_path / "out.h5", "holds the input", workdir=place)


def test_a_product_beside_its_inputs_is_found_again_and_replaced(tmp_path, paths):
    """It is no input: the directory was named, and the same job wrote it from there."""
    output = tmp_path / "data" / "out.npy"
    run(Scripted(), tmp_path / "data", output)
    output.write_bytes(paths[0].read_bytes() + b"0")  # looks like an input
    shutil.copy(output, tmp_path / "kept")
    with pytest.raises(ConfigError, match="is the input"):
        run(Scripted(), [*paths, output], output, overwrite=True)
    assert output.read_bytes() == (tmp_path / "kept").read_bytes()
    output.unlink()
    run(Scripted(), tmp_path / "data", output)


# -- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "match"),
    [
        ("", "no output was given"),
        (".", "names no file"),
        ("..", "names no file"),
        ("data/..", "names no file"),
        ("p.ecsv", "p.ecsv.*-o p.h5"),
        ("p.html", "p.html.*-o p.h5"),
        ("p.provenance.json", "p.provenance.json.*-o p.h5"),
        ("a" * 239, "too long by"),
        ("é" * 115 + ".h5", "too long by"),
        ("a" * 300, "too long by"),
        ("no/such/out.h5", "there is no directory .*/no;"),
        ("file/out.h5", "cannot write in"),
        ("run/plan.json", "is kept for plan.json"),
        ("run/store/out.h5", "is kept for store"),
    ],
)  # fmt: skip
def test_names_that_cannot_be_are_refused_before_any_work(
    tmp_path, paths, monkeypatch, output, match
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "run").mkdir(mode=0o700)
    workdir = tmp_path / "run" if output.startswith("run") else None
    _refused(tmp_path, paths, output, match, workdir=workdir)


@pytest.mark.parametrize("length", [200, 218])
def test_a_long_name_is_possible(tmp_path, paths, length):
    name = "a" * (length - 3) + ".h5"
    result = run(Scripted(), paths, tmp_path / name, report=True)
    assert all(path.exists() for path in result.paths)


def test_the_last_level_of_a_missing_directory_is_made(tmp_path, paths):
    result = run(Scripted(), paths, tmp_path / "new" / "out.h5", workdir=tmp_path / "made" / "work")
    assert result.paths[0].exists()


def test_a_run_that_turns_out_to_be_refused_takes_what_it_made_away(tmp_path, paths):
    (tmp_path / "out").mkdir()
    _refused(
        tmp_path, paths, tmp_path / "out", "is a directory, but this job writes one file",
        workdir=tmp_path / "made" / "work",
    )  # fmt: skip


def test_two_names_of_one_file_are_refused(tmp_path, paths):
    output = tmp_path / "out.h5"
    for options in (
        {"workdir": output},
        {"provenance_log": output},
        {"log_file": tmp_path / "out.ecsv"},
        {"provenance_log": tmp_path / "log", "log_file": tmp_path / "data" / ".." / "log"},
    ):
        _refused(tmp_path, paths, output, "is the same file as", **options)


@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_what_is_no_regular_file_is_not_replaced(tmp_path, paths, kind):
    output = tmp_path / "out.h5"
    if kind == "fifo":
        os.mkfifo(output)
    else:
        output.symlink_to("/dev/null")
    with pytest.raises(ConfigError, match="is no regular file"):
        run(Scripted(), paths, output, overwrite=True)
    assert not (tmp_path / "out.h5.work").exists()


def test_a_log_may_be_a_device_but_not_a_directory(tmp_path, paths):
    run(Scripted(), paths, tmp_path / "out.h5", provenance_log=Path("/dev/null"))
    _refused(
        tmp_path, paths, tmp_path / "x.h5", "is a directory", log_file=tmp_path / "out.h5.work"
    )


# -- companions -----------------------------------------------------------------------------------


def test_products_with_version_numbers_do_not_share_companions(tmp_path, paths):
    results = [run(Scripted(), paths, tmp_path / name, report=True) for name in ("v1.01", "v1.02")]
    names = [{path.name for path in result.paths} for result in results]
    assert not names[0] & names[1]
    assert names[0] == {"v1.01", "v1.01.ecsv", "v1.01.html", "v1.01.provenance.json"}
    assert all(path.exists() for result in results for path in result.paths)


def test_a_suffix_gives_way_only_if_it_is_the_products(tmp_path):
    names = {"a.h5": "a.html", "a.hdf5": "a.html", "a": "a.html", "a.1": "a.1.html",
             "a.2.h5": "a.2.html", ".h5": ".h5.html"}  # fmt: skip
    found = {name: companion(tmp_path / name, ".html").name for name in names}
    assert found == names


def test_a_file_with_the_name_of_a_companion_is_not_replaced_unasked(tmp_path, paths):
    output = tmp_path / "out.h5"
    (tmp_path / "out.html").write_text("my notes")
    before = _everything(tmp_path)
    with pytest.raises(ConfigError, match=r"out.html exists already.*--overwrite"):
        run(Scripted(), paths, output, report=True)
    assert _everything(tmp_path) == before
    run(Scripted(), paths, output, report=True, overwrite=True)
    assert (tmp_path / "out.html").read_text() != "my notes"


def test_companions_of_another_product_are_not_replaced_unasked(tmp_path, paths):
    run(Scripted(), paths, tmp_path / "out.h5")
    with pytest.raises(ConfigError, match=r"out.ecsv exists already"):
        run(Scripted(), paths, tmp_path / "out.hdf5")
    assert not (tmp_path / "out.hdf5.work").exists()


def test_what_the_same_work_directory_wrote_may_be_written_again(tmp_path, paths):
    output = tmp_path / "out.h5"
    run(Scripted(), paths, output)
    output.unlink()
    run(Scripted(), paths, output)
    (tmp_path / "out.h5.work" / "products.json").write_text("[broken")
    output.unlink()
    run(Scripted(), paths, output)  # the provenance beside it says whose they are
    output.unlink()
    shutil.rmtree(tmp_path / "out.h5.work")
    (tmp_path / "out.provenance.json").write_text("[broken")
    with pytest.raises(ConfigError, match="exists already"):
        run(Scripted(), paths, output)


def test_no_shipped_configuration_overwrites():
    from calibdask.demo import CONFIG

    shipped = [*(TESTS.parent / "configs").glob("*.yaml"), *(TESTS.parent / "jobs").glob("*.py")]
    assert len(shipped) > 20
    for text in [CONFIG, *(path.read_text() for path in shipped)]:
        assert "overwrite" not in text

"""Every wrong input ends with its exit code and a message that tells what to do."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tables

import calibdask as package
from calibdask.array.simulate import simulate_array, simulate_block
from calibdask.engine import events
from calibdask.errors import CorruptedInput
from calibdask.io.pytables import create_hdf5, write_root_attributes, write_table
from tests.e2e.conftest import SIMULATION
from tests.e2e.tables import COEFFICIENTS

JOB = "inter-calibration"
ENERGY = "/dl2/event/telescope/energy/RandomForestRegressor"


@pytest.fixture
def dl2(campaign, tmp_path):
    """Copies of the campaign's files, to be spoilt."""
    folder = tmp_path / "dl2"
    folder.mkdir()
    return [str(shutil.copy(path, folder)) for path in campaign.paths]


@pytest.fixture
def run(calibdask, config, tmp_path):
    """Run a job on inputs; the output must not appear where it fails."""

    def do(*inputs, job=JOB, settings=(), more=()):
        sets = [part for setting in settings for part in ("--set", setting)]
        output = tmp_path / "out.h5"
        arguments = ["-c", config, "-i", *inputs, "-o", output, "--cluster", "serial"]
        said = calibdask(job, *arguments, "--no-report", *sets, *more)
        assert output.exists() == (said.code == 0)
        return said

    return do


# -- files that cannot be read ------------------------------------------------------------------


@pytest.mark.parametrize("kept", [1, 100, 2048, 0.3, 0.9, 0.9999])
def test_truncated_file(run, dl2, kept):
    # Cut in the signature, the superblock, the first groups, the middle, the end.
    size = Path(dl2[1]).stat().st_size
    os.truncate(dl2[1], kept if kept >= 1 else int(size * kept))
    said = run(*dl2)
    assert said.code == 104
    assert str(dl2[1]) in said.err
    assert "the other 3 are stored" in said.err


@pytest.mark.parametrize(
    ("content", "code"), [(b"", 104), (b"obs_id,event_id\n1,2\n", 104), (None, 105)]
)
def test_empty_foreign_or_absent_file(run, tmp_path, content, code):
    path = tmp_path / "dl2.h5"
    if content is not None:
        path.write_bytes(content)
    said = run(path)
    assert said.code == code
    assert str(path) in said.err


def test_empty_directory(run, tmp_path):
    (tmp_path / "nothing").mkdir()
    said = run(tmp_path / "nothing")
    assert said.code == 2
    assert "no file named *.h5, *.hdf5 in the directory" in said.err


def test_directory_in_a_list_of_files(run, dl2, tmp_path):
    (tmp_path / "folder.h5").mkdir()
    (tmp_path / "list.txt").write_text(f"{dl2[0]}\nfolder.h5\n")
    said = run(f"@{tmp_path / 'list.txt'}")
    assert said.code == 2
    assert "folder.h5" in said.err


@pytest.mark.parametrize("argument", ["*.hdf", "@absent.txt"])
def test_input_that_names_nothing(run, tmp_path, argument):
    prefix, name = ("@", argument[1:]) if argument[0] == "@" else ("", argument)
    said = run(f"{prefix}{tmp_path / name}")
    assert said.code == 2
    assert name in said.err


def test_no_input(calibdask, tmp_path):
    assert calibdask(JOB, "-o", tmp_path / "out.h5").code == 2
    assert calibdask(JOB, "-o", tmp_path / "out.h5", "-i").code == 2


# -- files with something missing in them -------------------------------------------------------


@pytest.mark.parametrize(
    "where",
    [
        "/dl1/event/subarray/trigger",
        "/configuration/instrument/subarray/layout",
        ENERGY,
        "/dl2/event/telescope/impact",
    ],
)
def test_missing_table(run, dl2, where):
    with tables.open_file(dl2[2], "a") as file:
        file.remove_node(where, recursive=True)
    said = run(*dl2)
    assert said.code == 105
    assert str(dl2[2]) in said.err
    assert "the other 3 are stored" in said.err


def test_missing_column_with_suggestion(run, dl2):
    said = run(
        *dl2, settings=["CalculateEnergyAsymmetry.energy_reconstructor=RandomForestRegresor"]
    )
    assert said.code == 105
    assert "did you mean" in said.err
    assert "RandomForestRegressor_tel_energy" in said.err


def test_misspelt_column_in_a_criterion(run, dl2):
    criterion = '[["valid", "RandomForestRegressor_tel_is_vald"]]'
    said = run(
        *dl2, settings=[f"CalculateEnergyAsymmetry.QualityQuery.quality_criteria={criterion}"]
    )
    assert said.code == 105
    assert "RandomForestRegressor_tel_is_valid" in said.err


def test_energies_without_a_unit(run, dl2):
    with tables.open_file(dl2[0], "a") as file:
        for table in file.iter_nodes(ENERGY):
            index = table.colnames.index("RandomForestRegressor_tel_energy")
            del table.attrs[f"CTAFIELD_{index}_UNIT"]
            del table.attrs[f"CTAFIELD_{index}_TRANSFORM"]
    said = run(*dl2)
    assert said.code == 104
    assert dl2[0] in said.err
    assert "unit" in said.err


def test_energies_in_gev_are_the_same_energies(run, dl2, tmp_path):
    assert run(*dl2).code == 0
    (tmp_path / "out.h5").rename(tmp_path / "tev.h5")
    with tables.open_file(dl2[0], "a") as file:
        for table in file.iter_nodes(ENERGY):
            for name in (
                "RandomForestRegressor_tel_energy",
                "RandomForestRegressor_tel_energy_uncert",
            ):
                table.modify_column(colname=name, column=1000 * table.read(field=name))
                table.attrs[f"CTAFIELD_{table.colnames.index(name)}_UNIT"] = "GeV"
    assert run(*dl2).code == 0
    values = []
    for name in ("tev.h5", "out.h5"):
        with tables.open_file(tmp_path / name) as file:
            values.append(file.get_node(COEFFICIENTS).read(field="value"))
    np.testing.assert_allclose(*values, rtol=1e-12)


# -- files that do not belong there -------------------------------------------------------------


def test_file_of_another_kind(run, dl2, tmp_path):
    other = tmp_path / "dl2" / "weather.h5"
    with create_hdf5(other) as file:
        write_table(file, "/weather", {"temperature": np.arange(3.0)}, units={"temperature": "K"})
    named = run(*dl2, other)
    assert named.code == 105
    assert "weather.h5: holds neither DL2 events nor event-wise asymmetries" in named.err
    found = run(tmp_path / "dl2")
    assert found.code == 0
    assert "weather.h5 left out" in found.err


def test_the_same_content_under_another_name(run, dl2, tmp_path):
    copy = str(shutil.copy(dl2[0], tmp_path / "dl2" / "other.h5"))
    said = run(tmp_path / "dl2")
    assert said.code == 2
    assert "the same data twice" in said.err
    assert copy in said.err
    assert dl2[0] in said.err


def test_the_same_events_in_two_files(run, dl2, tmp_path):
    # Another product of the same observation: other bytes, same events.
    copy = str(shutil.copy(dl2[0], tmp_path / "dl2" / "reprocessed.h5"))
    with tables.open_file(copy, "a") as file:
        table = file.get_node(f"{ENERGY}/tel_001")
        name = "RandomForestRegressor_tel_energy"
        table.modify_column(colname=name, column=1.01 * table.read(field=name))
    said = run(tmp_path / "dl2")
    assert said.code == 104
    assert copy in said.err
    assert dl2[0] in said.err
    assert "of observation 1001" in said.err


def test_parts_of_one_observation_are_no_duplicates(run, tmp_path):
    options = replace(SIMULATION, n_files=2, n_events=150, shared_obs_id=True)
    made = simulate_array(tmp_path / "dl2", options)
    assert run(*made.paths).code == 0


def test_dl2_and_asymmetries_mixed(run, calibdask, config, dl2, tmp_path):
    said = calibdask(
        "energy-asymmetry-estimation", "-c", config, "-i", dl2[0], "-o", tmp_path / "a"
    )
    assert said.code == 0
    said = run(tmp_path / "a" / "dl2_obs1001.h5", dl2[1])
    assert said.code == 2
    assert "asymmetries" in said.err
    assert dl2[1] in said.err


def test_simulated_and_observed_mixed(run, dl2):
    with tables.open_file(dl2[3], "a") as file:
        here = file.root._v_attrs["CTA PROCESS TYPE"]
        other = "Observation" if here == "Simulation" else "Simulation"
        write_root_attributes(file, {"CTA PROCESS TYPE": other})
    said = run(*dl2)
    assert said.code == 2
    assert "simulated and observed events in one run" in said.err
    assert dl2[3] in said.err


def test_two_arrays_mixed(run, dl2, tmp_path):
    options = replace(SIMULATION, shifted_telescopes=(6,), shift_m=40.0)
    other = tmp_path / "other.h5"
    simulate_block(other, options, 7)
    said = run(*dl2, other)
    assert said.code == 2
    assert "telescope 6 stands in two places, 40.0 m apart" in said.err
    assert str(other) in said.err


def test_asymmetries_of_another_energy(run, calibdask, config, dl2, tmp_path):
    calibdask("energy-asymmetry-estimation", "-c", config, "-i", dl2[0], "-o", tmp_path / "a")
    said = run(
        tmp_path / "a",
        settings=[
            "CalculateInterCalibration.reconstruction_algorithm=Other",
            "CalculateEnergyAsymmetry.energy_reconstructor=Other",
        ],
    )
    assert said.code == 105
    assert "RandomForestRegressor_tel_energy" in said.err


# -- outputs ------------------------------------------------------------------------------------


def test_existing_output(run, calibdask, config, dl2, tmp_path):
    assert run(dl2[0]).code == 0
    output = tmp_path / "out.h5"
    before = output.read_bytes()
    again = [JOB, "-c", config, "-i", dl2[1], "-o", output, "--no-report"]
    said = calibdask(*again)
    assert said.code == 2
    assert f"error: {output}" in said.err
    assert "--overwrite" in said.err
    assert output.read_bytes() == before
    assert calibdask(*again, "--overwrite").code == 0
    assert output.read_bytes() != before


def test_failed_run_keeps_the_existing_output(run, calibdask, config, dl2, tmp_path):
    assert run(*dl2).code == 0
    output = tmp_path / "out.h5"
    before = output.read_bytes()
    os.truncate(dl2[1], 1000)
    again = [JOB, "-c", config, "-i", *dl2, "-o", output, "--no-report", "--overwrite"]
    assert calibdask(*again).code == 104
    assert output.read_bytes() == before


def test_output_in_a_folder_that_is_a_file(calibdask, config, dl2, tmp_path):
    (tmp_path / "file").write_text("")
    said = calibdask(JOB, "-c", config, "-i", dl2[0], "-o", tmp_path / "file" / "out.h5")
    assert said.code == 2
    assert f"cannot write in {tmp_path / 'file'}" in said.err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_output_in_a_folder_without_permission(calibdask, config, dl2, tmp_path):
    folder = tmp_path / "read_only"
    folder.mkdir(mode=0o500)
    said = calibdask(JOB, "-c", config, "-i", dl2[0], "-o", folder / "out.h5")
    assert said.code == 2
    assert f"cannot write in {folder}" in said.err


@pytest.mark.parametrize("job", [JOB, "energy-asymmetry-estimation"])
def test_output_of_the_wrong_sort(calibdask, config, dl2, tmp_path, job):
    # A file where the job writes a directory, or the other way round: known before any work.
    output = tmp_path / "output"
    if job == JOB:
        output.mkdir()
        (output / "precious.txt").write_text("mine")
    else:
        output.write_text("mine")
    said = calibdask(job, "-c", config, "-i", dl2[0], "-o", output, "--overwrite", "--no-report")
    assert said.code == 2
    assert str(output) in said.err
    assert '"event": "TaskEnded"' not in said.err
    assert (output / "precious.txt" if job == JOB else output).read_text() == "mine"


def test_two_inputs_for_one_output_file(calibdask, config, dl2, tmp_path):
    (tmp_path / "b").mkdir()
    other = shutil.move(dl2[1], tmp_path / "b" / "dl2_obs1001.h5")
    said = calibdask(
        "energy-asymmetry-estimation", "-c", config, "-i", dl2[0], other, "-o", tmp_path / "a"
    )
    assert said.code == 2
    assert str(other) in said.err
    assert "would both be written to dl2_obs1001.h5" in said.err
    assert '"event": "TaskEnded"' not in said.err  # known before any work


# -- configuration ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CalculateInterCalibraton: {}", ["CalculateInterCalibraton", "did you mean"]),
        ("RelativeThroughputFitter: {n_mim: 3}", ["RelativeThroughputFitter.n_mim", "n_min"]),
        ("RelativeThroughputFitter: {n_min: few}", ["RelativeThroughputFitter.n_min", "few"]),
        (
            "QualityQuery: {quality_criteria: [[a, 'RandomForestRegressor_tel_energy > > 1']]}",
            ["QualityQuery.quality_criteria", "> >", "^"],
        ),
        (
            'QualityQuery: {quality_criteria: [[a, \'__import__("os").system("true")\']]}',
            ["QualityQuery.quality_criteria", "__import__"],
        ),
        (
            "CalculateEnergyAsymmetry: {event_filters: {min_energy: 50 m}}",
            ["CalculateEnergyAsymmetry.event_filters.min_energy", "50 m", "TeV"],
        ),
        ("CalculateInterCalibration: [", ["config.yaml:1:29", "expected the node content"]),
        ("- 1", ["config.yaml"]),
        ("!!python/object/apply:os.system ['true']", ["config.yaml"]),
    ],
)
def test_configuration(calibdask, dl2, tmp_path, text, expected):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    said = calibdask(JOB, "-c", path, "-i", dl2[0], "-o", tmp_path / "out.h5")
    assert said.code == 2
    assert str(path) in said.err
    for part in expected:
        assert part in said.err
    assert not (tmp_path / "out.h5.work").exists()


def test_unit_error_in_a_criterion(run, dl2):
    # That needs the file's units: found when it is read, before anything is computed from it.
    criterion = '[["far", "RandomForestRegressor_tel_energy > 5 * u.m"]]'
    said = run(
        dl2[0], settings=[f"CalculateEnergyAsymmetry.QualityQuery.quality_criteria={criterion}"]
    )
    assert said.code == 2
    assert "RandomForestRegressor_tel_energy > 5 * u.m" in said.err
    assert "TeV" in said.err


def test_pattern_that_matches_no_telescope(run, dl2):
    name = "CalculateEnergyAsymmetry.PairFinder.max_impact_distance"
    nothing_left = run(dl2[0], settings=[f'{name}=[[type, "XST*", 125.0]]'])
    assert nothing_left.code == 2
    assert "max_impact_distance" in nothing_left.err
    too_much = run(dl2[0], settings=[f'{name}=[[type, "*", 200.0], [type, "XST*", 125.0]]'])
    assert too_much.code == 0
    assert "XST*" in too_much.err


def test_unknown_reference_telescope(run, dl2, tmp_path):
    name = "CalculateInterCalibration.RelativeThroughputFitter.reference_telescopes"
    said = run(*dl2, settings=[f"{name}={{LST: 1, MST: 77, SST: 30}}"])
    assert said.code == 0
    assert "reference telescope 77 of MST is not among the MST of the inputs" in said.err
    with tables.open_file(tmp_path / "out.h5") as file:
        rows = file.get_node(COEFFICIENTS).read()
    fallback = np.strings.find(rows["flags"], b"F") >= 0
    np.testing.assert_array_equal(fallback, rows["tel_type"] == b"MST")


# -- one bad one never costs the others ---------------------------------------------------------


def test_one_bad_file_of_four(run, dl2, campaign, tmp_path):
    """The run fails, the rest is stored; mended, only the bad one is computed."""
    undisturbed = run(*dl2)
    digest = undisturbed.out.split()[-1]
    (tmp_path / "out.h5").unlink()
    shutil.rmtree(tmp_path / "out.h5.work")

    os.truncate(dl2[2], 200_000)
    said = run(*dl2)
    assert said.code == 104
    assert dl2[2] in said.err
    assert "1 of 4 inputs or shards failed; the other 3 are stored" in said.err
    assert "run the same command again" in said.err
    assert not (tmp_path / "out.h5").exists()

    shutil.copy(campaign.paths[2], dl2[2])
    mended = run(*dl2)
    assert mended.code == 0
    assert "4 used (1 computed now, 3 found in the store)" in mended.out
    assert mended.out.split()[-1] == digest


def test_loss_that_is_allowed_is_told(run, dl2, tmp_path):
    os.truncate(dl2[2], 1000)
    said = run(*dl2, more=["--allow-missing", "0.25"])
    assert said.code == 0
    assert "1 MISSING" in said.out
    activity = json.loads((tmp_path / "out.provenance.json").read_text())
    assert activity["status"] == "incomplete"
    assert len(activity["missing"]) == 1
    with tables.open_file(tmp_path / "out.h5") as file:
        assert file.root._v_attrs["CALIBDASK SHARDS MISSING"] == "1"


@pytest.mark.parametrize("change", ["longer", "newer", "gone"])
def test_file_that_changes_between_plan_and_run(config, dl2, tmp_path, change):
    def listener(event):
        if isinstance(event, events.RunStarted):
            match change:
                case "longer":
                    os.truncate(dl2[1], Path(dl2[1]).stat().st_size + 1)
                case "newer":
                    os.utime(dl2[1])
                case "gone":
                    Path(dl2[1]).unlink()

    words = "gone" if change == "gone" else "changed between plan and run"
    kind = package.errors.MissingInput if change == "gone" else CorruptedInput
    with pytest.raises(kind, match=words) as error:
        package.run(JOB, dl2, tmp_path / "o.h5", config=config, listener=listener, cluster="serial")
    assert dl2[1] in str(error.value)
    assert not (tmp_path / "o.h5").exists()


def test_one_bad_telescope_costs_no_other(run, dl2, tmp_path):
    # A telescope whose rows are of another one: the file contradicts itself and is refused whole;
    # but energies that are all zero, infinite or negative cost only that telescope.
    name = "RandomForestRegressor_tel_energy"
    for path in dl2:
        with tables.open_file(path, "a") as file:
            table = file.get_node(f"{ENERGY}/tel_007")
            bad = np.resize([0.0, np.inf, -1.0, np.nan], table.nrows)
            table.modify_column(colname=name, column=bad)
    said = run(*dl2)
    assert said.code == 0
    assert "their energy is NaN, infinite or not positive" in said.err
    with tables.open_file(tmp_path / "out.h5") as file:
        rows = file.get_node(COEFFICIENTS).read()
    without_value = rows["tel_id"][~np.isfinite(rows["value"])]
    assert without_value.tolist() == [7]


def test_rows_of_another_telescope(run, dl2):
    with tables.open_file(dl2[0], "a") as file:
        table = file.get_node(f"{ENERGY}/tel_007")
        table.modify_column(colname="tel_id", column=np.full(table.nrows, 8, np.int16))
    said = run(*dl2)
    assert said.code == 104
    assert dl2[0] in said.err
    assert "has rows of telescope 8" in said.err


def test_event_twice_in_a_table(run, dl2):
    with tables.open_file(dl2[0], "a") as file:
        table = file.get_node(f"{ENERGY}/tel_001")
        table.append(table.read(0, 1))
    said = run(*dl2)
    assert said.code == 104
    assert dl2[0] in said.err

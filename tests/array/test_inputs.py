"""Inputs as they come: other events than showers, no times, any numbers, types and names."""

from __future__ import annotations

import shutil
import warnings

import numpy as np
import pytest
import tables
from numpy.lib.recfunctions import repack_fields

import calibdask
from calibdask.api import plan
from calibdask.array.simulate import ArraySimulation, simulate_array
from calibdask.errors import CorruptedInput, NotEnoughData
from calibdask.stats.timebins import to_time

JOB = "inter-calibration"
TABLE = "/dl2/monitoring/subarray/inter_calibration"
TRIGGERS = ("/dl1/event/subarray/trigger", "/dl1/event/telescope/trigger")
TELESCOPES = "/dl2/event/telescope"
ENERGY = f"{TELESCOPES}/energy/RandomForestRegressor"
REFERENCES = {"LST": 1, "MST": 5, "SST": 30}
OVERRIDES = {
    "QualityQuery.quality_criteria": [["valid", "RandomForestRegressor_tel_is_valid"]],
    "CalculateEnergyAsymmetry.event_filters": {"max_distance_asymmetry": 0.3},
    "CalculateCrossCalibration.event_filters": {"max_distance_asymmetry": 0.3},
    "RelativeThroughputFitter.reference_telescopes": REFERENCES,
}
OPTIONS = ArraySimulation(
    n_files=2,
    n_events=250,
    array="reduced",
    energy_range_tev=(3.0, 100.0),
    core_margin_m=0.0,
    block_duration_s=1200.0,
    seed=11,
)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    return simulate_array(tmp_path_factory.mktemp("simulated"), OPTIONS)


@pytest.fixture
def altered(simulated, tmp_path):
    """Copy the files, and let a function change each."""

    def make(change, name="altered"):
        folder = tmp_path / name
        folder.mkdir()
        paths = [shutil.copy(path, folder) for path in simulated.paths]
        for path in paths:
            with warnings.catch_warnings(), tables.open_file(path, "a") as file:
                warnings.simplefilter("ignore", tables.NaturalNameWarning)
                change(file)
        return paths

    return make


def run(paths, output, overrides=None, job=JOB, **options):
    options = {"cluster": "serial", "report": False} | options
    return calibdask.run(job, paths, output, overrides=OVERRIDES | (overrides or {}), **options)


def rewrite(file, table, change, names=None, **dtypes):
    """Write a table's rows as a function gives them back, with other types or names of columns."""
    rows, attributes = table.read(), {k: table.attrs[k] for k in table.attrs._v_attrnamesuser}
    kinds = [(names(n) if names else n, dtypes.get(n, rows.dtype[n])) for n in rows.dtype.names]
    new = np.zeros(len(rows), kinds)
    for (name, *_), old in zip(kinds, rows.dtype.names, strict=True):
        if new[name].shape == rows[old].shape:
            new[name] = rows[old]
    where, leaf = table._v_parent._v_pathname, table._v_name
    file.remove_node(table)
    made = file.create_table(where, leaf, obj=change(new), createparents=True)
    for key, value in attributes.items():
        text = names(str(value)) if names and key.endswith("_NAME") else value
        made.attrs[key] = text


def values(result, table=TABLE):
    return {int(row["tel_id"]): (row["value"], row["error"]) for row in result.tables[table]}


def same(one, two):
    return all(np.array_equal(one[key], two[key], equal_nan=True) for key in one | two)


# -- other events than showers ------------------------------------------------------------------


def flat_fields(file):
    """Make a third of the events flat-field events, with one energy, and take the rest away."""
    ids = file.get_node(TRIGGERS[0]).col("event_id")[::3]

    def of_type(rows):
        rows["event_type"][np.isin(rows["event_id"], ids)] = 0
        return rows

    def alike(rows):
        rows["RandomForestRegressor_tel_energy"][np.isin(rows["event_id"], ids)] = 1.0
        return rows

    for path in TRIGGERS:
        rewrite(file, file.get_node(path), of_type)
    for table in list(file.get_node(ENERGY)._f_iter_nodes("Table")):
        rewrite(file, table, alike)


def without_a_third(file):
    """Take the same events out of the energies."""
    ids = file.get_node(TRIGGERS[0]).col("event_id")[::3]
    for table in list(file.get_node(ENERGY)._f_iter_nodes("Table")):
        rewrite(file, table, lambda rows: rows[~np.isin(rows["event_id"], ids)])


def test_flat_field_events_are_left_out_and_counted(altered, tmp_path):
    flat = altered(flat_fields, "flat")
    result = run(flat, tmp_path / "flat.h5")
    fewer = run(altered(without_a_third, "fewer"), tmp_path / "fewer.h5")
    assert same(values(result), values(fewer))
    flow = result.account.total.cut_flow
    assert 0.25 < 1 - flow["event type 32"] / flow["telescope events"] < 0.4
    everything = {"CalculateEnergyAsymmetry.event_types": []}
    taken = run(flat, tmp_path / "all.h5", everything)
    assert "event type 32" not in taken.account.total.cut_flow
    assert not same(values(taken), values(result))


def test_flat_field_events_are_in_no_asymmetry(altered, tmp_path):
    flat = altered(flat_fields, "flat")
    for job, section in (
        ("energy-asymmetry-estimation", "CalculateEnergyAsymmetry"),
        ("image-asymmetry-estimation", "CalculateImageAsymmetry"),
    ):
        n_rows = []
        for event_types in ([], ["subarray"], [0, "SUBARRAY"]):
            output = tmp_path / f"{job}{len(n_rows)}"
            criteria = {"QualityQuery.quality_criteria": []}
            options = {f"{section}.event_types": event_types, **criteria}
            run(flat, output, options, job)
            n = 0
            for path in sorted(output.glob("*.h5")):
                with tables.open_file(path) as file:
                    n += file.get_node(f"/{job[:6].rstrip('-')}_asymmetry/events").nrows
            n_rows.append(n)
        assert n_rows[0] == n_rows[2] > n_rows[1] > 0


def test_only_other_events_are_told(altered, tmp_path):
    def other(file):
        for path in TRIGGERS:
            rewrite(file, file.get_node(path), lambda rows: _with(rows, event_type=255))

    with pytest.raises(NotEnoughData):
        run(altered(other), tmp_path / "o.h5")


def _with(rows, **columns):
    for name, value in columns.items():
        rows[name] = value
    return rows


def test_a_file_that_does_not_tell_the_types_of_its_events_is_told(altered, simulated, tmp_path):
    def untyped(file):
        for path in TRIGGERS:
            table = file.get_node(path)
            rows = table.read()
            keep = [name for name in rows.dtype.names if name != "event_type"]
            attributes = {k: table.attrs[k] for k in table.attrs._v_attrnamesuser}
            file.remove_node(table)
            made = file.create_table(*path.rsplit("/", 1), obj=repack_fields(rows[keep]))
            for key, value in attributes.items():
                made.attrs[key] = value

    result = run(altered(untyped), tmp_path / "o.h5")
    assert any("does not tell the types of its events" in text for text in result.plan.warnings)
    assert same(values(result), values(run(simulated.paths, tmp_path / "typed.h5")))


# -- columns that stand twice -------------------------------------------------------------------


def test_validity_of_the_energy_is_not_that_of_another_quantity(altered, tmp_path):
    def invalid(file):
        for table in list(file.get_node(ENERGY)._f_iter_nodes("Table")):
            rows = table.read()
            bad = np.arange(len(rows)) % 3 == 0
            names = ["obs_id", "event_id", "tel_id", f"{FOREST}_tel_is_valid"]
            disp = _with(repack_fields(rows[names]).copy(), **{names[-1]: True})
            file.create_table(
                f"{TELESCOPES}/disp/{FOREST}", table._v_name, obj=disp, createparents=True
            )
            rows[f"{FOREST}_tel_is_valid"][bad] = False
            if table._v_name == "tel_002":
                rows[f"{FOREST}_tel_energy"][bad] *= 3.0
            rewrite(file, table, lambda _, rows=rows: rows)

    def left_out(file):
        for table in list(file.get_node(ENERGY)._f_iter_nodes("Table")):
            rewrite(file, table, lambda rows: rows[np.arange(len(rows)) % 3 > 0])

    twice = run(altered(invalid, "twice"), tmp_path / "twice.h5")
    fewer = run(altered(left_out, "fewer"), tmp_path / "fewer.h5")
    assert same(values(twice), values(fewer))


FOREST = "RandomForestRegressor"


# -- no times -----------------------------------------------------------------------------------


def test_events_without_time_are_in_no_time_bin_and_told(altered, simulated, tmp_path):
    def timeless(file):
        for path in TRIGGERS:
            rewrite(file, file.get_node(path), _without_first_times)

    start = to_time(int(OPTIONS.start_tai_s(0) * 1e9)).utc.isot
    bins = {"Campaign.time_bin": "20 min", "Campaign.epoch": start}
    paths = altered(timeless)
    result = run(paths, tmp_path / "o.h5", bins)
    numbers = np.unique(result.tables[TABLE]["time_bin"]).tolist()
    assert numbers == [0, 1]
    told = [text for text in result.plan.warnings if "3 of 250 events have no time" in text]
    assert len(told) == 2
    flow = result.account.total.cut_flow
    assert 0 < flow["event type 32"] - flow["event time known"] < 6 * 17
    # Cut into ranges of events it is the same.
    parts = run(paths, tmp_path / "parts.h5", bins | {"Campaign.shard_bytes": 12_000_000})
    assert len(parts.plan.shards) > 2
    np.testing.assert_allclose(
        parts.tables[TABLE]["value"], result.tables[TABLE]["value"], rtol=1e-9
    )
    # Without bins nobody asks for the time.
    assert same(
        values(run(paths, tmp_path / "all.h5")), values(run(simulated.paths, tmp_path / "b.h5"))
    )


def _without_first_times(rows):
    first = np.unique(rows["event_id"])[:3]
    rows["time"][np.isin(rows["event_id"], first)] = 0
    return rows


def test_no_event_has_a_time(altered, tmp_path):
    def timeless(file):
        for path in TRIGGERS:
            rewrite(file, file.get_node(path), lambda rows: _with(rows, time=0))

    with pytest.raises(NotEnoughData, match="no event has a time"):
        run(altered(timeless), tmp_path / "o.h5", {"Campaign.time_bin": "1 d"})


def test_times_of_utc_fall_into_the_bins_of_their_times(altered, simulated, tmp_path):
    def utc(file):
        for path in TRIGGERS:
            table = file.get_node(path)
            rewrite(file, table, _earlier)
            table = file.get_node(path)
            table.attrs[f"CTAFIELD_{table.colnames.index('time')}_TIME_SCALE"] = "utc"

    def _earlier(rows):
        rows["time"][:, 0] -= 37
        return rows

    bins = {"Campaign.time_bin": "5 min"}
    paths = altered(utc)
    result, expected = (run(p, tmp_path / f"{i}.h5", bins) for i, p in
                        enumerate((paths, simulated.paths)))  # fmt: skip
    for name in ("time_bin", "tel_id", "value"):
        np.testing.assert_array_equal(result.tables[TABLE][name], expected.tables[TABLE][name])


# -- numbers of observations --------------------------------------------------------------------


@pytest.mark.parametrize(("obs_id", "dtype"), [(-1, "i4"), (2**40, "u8"), (5, "f8")])
def test_observations_of_any_number_make_a_product(altered, simulated, tmp_path, obs_id, dtype):
    def numbered(file):
        for table in list(file.walk_nodes("/", "Table")):
            if "obs_id" in table.colnames:
                rewrite(file, table, lambda rows: _with(rows, obs_id=obs_id), obs_id=dtype)

    paths = altered(numbered)[:1]
    result = run(paths, tmp_path / "o.h5")
    expected = run(simulated.paths[:1], tmp_path / "expected.h5")
    assert same(values(result), values(expected))
    assert result.tables[TABLE].meta["obs_id"].tolist() == [obs_id]
    # The first step keeps the number, and the second one reads it.
    run(paths, tmp_path / "asymmetries", job="energy-asymmetry-estimation")
    two = run([tmp_path / "asymmetries"], tmp_path / "two.h5")
    assert same(values(two), values(expected))
    assert two.tables[TABLE].meta["obs_id"].tolist() == [obs_id]


def test_observations_that_no_product_can_name_are_refused_by_the_plan(altered):
    def numbered(file):
        for table in list(file.walk_nodes("/", "Table")):
            if "obs_id" in table.colnames:
                rewrite(file, table, lambda rows: _with(rows, obs_id=2**63 + 1), obs_id="u8")

    with pytest.raises(CorruptedInput, match="obs_id with 9223372036854775809"):
        plan(JOB, altered(numbered), overrides=OVERRIDES)


# -- types and algorithms of any name -----------------------------------------------------------

MINI = "MST x/Flash"
NAMES = {
    "RandomForestRegressor": "Random-Forest",
    "RandomForestClassifier": "Class-1",
    "HillasReconstructor": "Hil-las",
}


def renamed(file):
    def new(name):
        for old, other in NAMES.items():
            name = name.replace(old, other)
        return name

    layout = file.get_node("/configuration/instrument/subarray/layout")
    kinds = {b"MST": MINI.encode(), b"SST": b"UNKNOWN"}
    rewrite(
        file,
        layout,
        lambda rows: _with(rows, type=[kinds.get(kind, kind) for kind in rows["type"].tolist()]),
        type="S11",
    )
    for group in ("energy", "particle_type", "impact"):
        for node in list(file.get_node(f"{TELESCOPES}/{group}")._f_iter_nodes()):
            for table in list(node._f_iter_nodes("Table")):
                rewrite(file, table, lambda rows: rows, new)
            file.rename_node(node, new(node._v_name))


def test_types_and_algorithms_of_any_name(altered, simulated, tmp_path):
    names = dict(zip(("energy", "gammaness", "geometry"), NAMES.values(), strict=True))
    algorithms = {f"{kind}_reconstructor": name for kind, name in names.items()}
    overrides = {
        "QualityQuery.quality_criteria": [
            ["valid", "Random-Forest_tel_is_valid"],
            ["energy", "Random-Forest_tel_energy > 50 * u.GeV"],
            ["gammaness", "not `Class-1_tel_prediction` - 0.5 < 0"],
        ],
        "RelativeThroughputFitter.reference_telescopes": {"LST": 1, MINI: 5, "UNKNOWN": 30},
        "RelativeThroughputFitter.throughput_normalisation": {MINI: 2.0, "Nonesuch": 3.0},
    }
    old = {
        "QualityQuery.quality_criteria": [
            ["valid", "RandomForestRegressor_tel_is_valid"],
            ["energy", "RandomForestRegressor_tel_energy > 50 * u.GeV"],
            ["gammaness", "RandomForestClassifier_tel_prediction >= 0.5"],
        ],
        "RelativeThroughputFitter.throughput_normalisation": {"MST": 2.0},
    }
    for section in ("CalculateEnergyAsymmetry", "CalculateCrossCalibration"):
        overrides |= {f"{section}.{name}": value for name, value in algorithms.items()}
    overrides["CalculateCrossCalibration.reference_subsystem"] = MINI
    paths = altered(renamed)
    result = run(paths, tmp_path / "new.h5", overrides)
    expected = run(simulated.paths, tmp_path / "old.h5", old)
    assert same(values(result), values(expected))
    assert set(result.tables[TABLE]["tel_type"]) == {"LST", MINI, "UNKNOWN"}
    assert any("no telescope is of the type 'Nonesuch'" in text for text in result.plan.warnings)
    run(paths, tmp_path / "asymmetries", overrides, "energy-asymmetry-estimation")
    two = run([tmp_path / "asymmetries"], tmp_path / "two.h5", overrides)
    assert same(values(two), values(expected))
    # In the other order of the types numbers are summed in another order.
    table = "/dl2/monitoring/subarray/cross_calibration/coefficients"
    job = "cross-calibration"
    cross = values(run(paths, tmp_path / "cross.h5", overrides, job), table)
    for tel_id, found in values(run(simulated.paths, tmp_path / "c.h5", old, job), table).items():
        np.testing.assert_allclose(cross[tel_id], found, rtol=1e-6)


# -- the default estimator ----------------------------------------------------------------------


def test_outliers_in_one_telescope_do_not_draw_it(altered, simulated, tmp_path):
    def outliers(file):
        def triple(rows):
            rows[f"{FOREST}_tel_energy"][::20] *= 3.0
            return rows

        rewrite(file, file.get_node(f"{ENERGY}/tel_007"), triple)

    paths = altered(outliers)
    shift = {}
    for estimator in (None, "log-mean"):
        options = {"RelativeThroughputFitter.estimator": estimator} if estimator else {}
        before, after = (
            values(run(some, tmp_path / f"{estimator}{i}.h5", options))[7][0]
            for i, some in enumerate((simulated.paths, paths))
        )
        shift[estimator] = abs(np.log(after / before))
    assert shift["log-mean"] > 0.03
    assert shift[None] < 0.01


# -- extreme values -----------------------------------------------------------------------------


def _energies(*values, every=4):
    """Return the first telescopes of the types energies that nothing measures, in some events."""

    def change(file):
        for table in file.get_node(ENERGY)._f_iter_nodes("Table"):
            if every < 4 or table._v_name in ("tel_002", "tel_006"):
                rows = table.read()
                for place, value in enumerate(values):
                    rows[f"{FOREST}_tel_energy"][place::every] = value
                rewrite(file, table, lambda _, rows=rows: rows)

    return change


@pytest.mark.parametrize("way", ["one step", "two steps", "cross", "cross and given ratios"])
def test_energies_that_nothing_measures_cost_their_own_events(altered, simulated, tmp_path, way):
    run(simulated.paths, tmp_path / "inter.h5")

    def calibrated(*values):
        name = f"{values[0]}"
        paths, output = altered(_energies(*values), name), tmp_path / f"{name}.h5"
        if way == "two steps":
            run(paths, tmp_path / f"{name}.dir", job="energy-asymmetry-estimation")
            return run(tmp_path / f"{name}.dir", output)
        if way == "cross and given ratios":
            paths.append(tmp_path / "inter.h5")
        return run(paths, output, job=JOB if way == "one step" else "cross-calibration")

    assert calibrated(1e300, 5e-324).digest == calibrated(np.nan, np.nan).digest


@pytest.mark.parametrize("job", [JOB, "cross-calibration", "energy-asymmetry-estimation"])
def test_energies_of_which_none_can_be_measured_are_not_enough(altered, tmp_path, job):
    with pytest.raises(NotEnoughData):
        run(altered(_energies(1e300, 5e-324, every=2)), tmp_path / "o", job=job)


@pytest.mark.parametrize("job", [JOB, "cross-calibration"])
def test_times_before_1970_and_after_2106_are_in_no_time_bin(altered, tmp_path, job):
    def as_mjd(file):
        for path in TRIGGERS:
            table = file.get_node(path)
            number = table.colnames.index("time")
            mjd = 40587 + table.col("time")[:, 0] / 86400
            first = np.unique(table.col("event_id"))[:4]
            mjd[np.isin(table.col("event_id"), first[:2])] = 30_000.0
            mjd[np.isin(table.col("event_id"), first[2:])] = 100_000.0
            rewrite(file, table, lambda rows, mjd=mjd: _with(rows, time=mjd), time=np.float64)
            attributes = file.get_node(path).attrs
            attributes[f"CTAFIELD_{number}_TIME_FORMAT"] = "mjd"
            attributes[f"CTAFIELD_{number}_TIME_SCALE"] = "tai"

    result = run(altered(as_mjd), tmp_path / "o.h5", {"Campaign.time_bin": "1 d"}, job=job)
    assert sum("4 of 250 events have no time" in text for text in result.plan.warnings) == 2
    for table in result.tables.values():
        if "time_bin" in table.colnames:
            assert np.ptp(table["time_bin"]) <= 1


# -- tables that a killed writer did not get to ---------------------------------------------------


def test_a_triggered_telescope_without_tables_is_flagged_and_told(altered, simulated, tmp_path):
    def untabled(file):
        for group in list(file.get_node(TELESCOPES)._f_walk_groups()):
            if "tel_002" in group:
                file.remove_node(group, "tel_002")

    result = run(altered(untabled), tmp_path / "o.h5")
    flags = {int(row["tel_id"]): str(row["flags"]) for row in result.tables[TABLE]}
    assert "L" in flags[2]
    assert not [number for number, text in flags.items() if number != 2 and "L" in text]
    told = [text for text in result.account.total.warnings if "lacks" in text]
    assert len(told) == 2
    assert all("telescope 2" in text for text in told), told

"""Both jobs from files: the truth comes back, and what is odd neither stops nor bends them."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import tables
from astropy.stats import sigma_clip

import calibdask
from calibdask.engine.preliminary import preliminary
from calibdask.engine.store import Store
from calibdask.engine.tasks import WorkContext
from calibdask.errors import ConfigError, CorruptedInput, MissingInput, NotEnoughData
from calibdask.io.hdf5 import digest_hdf5
from calibdask.io.muon import TRIGGER, read_rings, read_times
from calibdask.muon.simulate import (
    MuonSimulation,
    describe_telescopes,
    ring_columns,
    simulate_ring_tables,
    simulate_rings,
    true_efficiency,
    write_rings,
)
from calibdask.stats.timebins import TimeBins
from tests.muon.conftest import OPTIONS, PSF, THROUGHPUT
from tests.muon.toys import START_NS, S, in_memory, write_file

EFFICIENCY = "muonefficiency_optical_efficiency"
COLUMNS = (
    EFFICIENCY,
    "muonefficiency_impact",
    "muonefficiency_is_valid",
    "muonefficiency_parameters_at_limit",
    "muonefficiency_width",
    "muonring_radius",
)


def good_rings(paths, tel_id):
    """All selected rings of a telescope, in the order of time: read and cut without the job."""
    parts = []
    for path in paths:
        rows = read_rings(path, COLUMNS, [tel_id]).columns
        keys = [rows[name] for name in ("obs_id", "event_id", "tel_id")]
        parts.append({**rows, "time_ns": read_times(path, *keys)})
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    good = rows["muonefficiency_is_valid"] & ~rows["muonefficiency_parameters_at_limit"]
    good &= (rows["muonefficiency_impact"] <= 10) & np.isfinite(rows[EFFICIENCY])
    rows = {name: values[good] for name, values in rows.items()}
    order = np.argsort(rows["time_ns"], kind="stable")
    return {name: values[order] for name, values in rows.items()}


# -- numbers --------------------------------------------------------------------------------------


def test_one_bin_is_the_one_machine_result(muons, run):
    table = run("throughput", muons).tables[f"{THROUGHPUT}/tel_001"]
    rings = good_rings(muons, 1)
    kept = sigma_clip(rings[EFFICIENCY], sigma=4, maxiters=5, cenfunc="mean").compressed()
    assert len(table) == 1
    assert table["n_events"][0] == len(kept)
    assert table["n_clipped"][0] == len(rings[EFFICIENCY]) - len(kept)
    assert table["mean"][0] == pytest.approx(kept.mean(), rel=1e-12)
    assert table["std"][0] == pytest.approx(kept.std(), rel=1e-11)
    assert table["sem"][0] == pytest.approx(kept.std(ddof=1) / np.sqrt(len(kept)), rel=1e-11)
    assert table["median"][0] == pytest.approx(np.median(kept), abs=0.01 * kept.std())
    assert table["time_start"][0].unix_tai == pytest.approx(rings["time_ns"][0] / S, abs=1e-6)
    assert table["time_end"][0].unix_tai == pytest.approx(rings["time_ns"][-1] / S, abs=1e-6)


def test_chunks_by_number_run_across_files(muons, run):
    result = run("throughput", muons, {"SizeChunking.chunk_size": 700})
    table, rings = result.tables[f"{THROUGHPUT}/tel_002"], good_rings(muons, 2)
    n = len(rings[EFFICIENCY])
    assert len(table) == -(-n // 700)
    assert sum(table["n_events"] + table["n_clipped"]) == n  # each ring once: no overlap
    for i, row in enumerate(table):
        own = rings[EFFICIENCY][700 * i : 700 * (i + 1)]
        kept = sigma_clip(own, sigma=4, maxiters=5, cenfunc="mean").compressed()
        assert row["n_events"] == len(kept)
        assert row["mean"] == pytest.approx(kept.mean(), rel=1e-12)
        assert row["median"] == pytest.approx(np.median(kept), abs=0.02 * kept.std())
    skipped = run(
        "throughput",
        muons,
        {"SizeChunking.chunk_size": 700, "SizeChunking.last_chunk_policy": "skip"},
    ).tables[f"{THROUGHPUT}/tel_002"]
    assert len(skipped) == n // 700
    assert list(skipped["mean"]) == list(table["mean"][: n // 700])


def test_the_truth_comes_back(muons, run):
    result = run("throughput", muons, {"Campaign.time_bin": "5 min"})
    pulls = []
    for tel_id in (1, 2):
        table = result.tables[f"{THROUGHPUT}/tel_{tel_id:03d}"]
        assert len(table) >= 12
        time_ns = np.round(table["time_mean"].unix_tai * S).astype(np.int64)
        truth = true_efficiency(OPTIONS, np.full(len(table), tel_id), time_ns)
        pulls += list((table["mean"] - truth) / table["sem"])
    pulls = np.array(pulls)
    assert abs(pulls.mean()) < 3 / np.sqrt(len(pulls))
    assert pulls.std() == pytest.approx(1, abs=3 / np.sqrt(2 * len(pulls)))
    trend = result.tables[f"{THROUGHPUT}_trend"]
    start = true_efficiency(OPTIONS, np.array([1, 2]), np.full(2, START_NS))
    slope = trend["slope"].value[:2]
    assert (
        np.abs(slope - OPTIONS.trend_per_day * start) < 3.5 * trend["slope_err"].value[:2]
    ).all()
    assert ((trend["chi2"] / trend["ndf"])[:2] < 2).all()
    assert (trend["slope"].value[:2] < -5 * trend["slope_err"].value[:2]).all()


def test_pulls_of_trend_and_line_over_many_simulations():
    pulls = []
    for seed in range(60):
        options = MuonSimulation(
            n_files=1, n_rings=3000, n_telescopes=1, trend_per_day=-0.08, seed=seed
        )
        columns = simulate_rings(options, 0)
        bins = TimeBins(180 * S, START_NS)
        trend = in_memory("throughput", columns, bins=bins)[f"{THROUGHPUT}_trend"]
        truth = options.trend_per_day * options.efficiency
        line = in_memory("psf", columns)[f"{PSF}_overview"]
        pulls.append(
            (
                (trend["slope"].value[0] - truth) / trend["slope_err"].value[0],
                (line["slope"].value[0] + 0.08) / line["slope_err"].value[0],
                (line["intercept"][0] - 0.13) / line["intercept_err"][0],
                line["chi2"][0] / line["ndf"][0],
                trend["chi2"][0] / trend["ndf"][0],
            )
        )
    pulls = np.array(pulls)
    n = len(pulls)
    assert np.abs(pulls[:, :3].mean(axis=0)).max() < 3.3 / np.sqrt(n)
    np.testing.assert_allclose(pulls[:, :3].std(axis=0), 1, atol=3.3 / np.sqrt(2 * n))
    np.testing.assert_allclose(pulls[:, 3:].mean(axis=0), 1, atol=0.25)


def test_residuals_show_what_depends_on_the_impact(tmp_path, run):
    options = MuonSimulation(
        n_files=1,
        n_rings=20_000,
        n_telescopes=1,
        impact_slope_per_m=0.01,
        azimuth_amplitude=0.03,
        outlier_fraction=0.0,
        seed=2,
    )
    result = run("throughput", simulate_ring_tables(tmp_path / "sim", options))
    impact = result.tables[f"{THROUGHPUT}_impact"]
    middle = 0.5 * (impact["impact_low"] + impact["impact_high"]).value
    residual = np.asarray(impact["residual"])
    slope, _ = np.polyfit(middle, residual, 1, w=1 / impact["residual_err"])
    assert slope == pytest.approx(0.01, abs=0.001)
    azimuth = result.tables[f"{THROUGHPUT}_azimuth"]
    phi = np.radians(0.5 * (azimuth["azimuth_low"] + azimuth["azimuth_high"]).value)
    amplitude = 2 * np.mean(np.asarray(azimuth["residual"]) * np.cos(phi))
    assert amplitude == pytest.approx(0.03, abs=0.003)
    radius = result.tables[f"{THROUGHPUT}_radius"]
    filled = radius[radius["n_events"] > 100]
    assert (np.abs(filled["residual"]) < 4 * filled["residual_err"]).all()


def test_the_line_is_fitted_to_points_of_all_rings(muons, run):
    result = run("psf", muons)
    points = result.tables[f"{PSF}_bins"]
    own = points[points["tel_id"] == 1]
    rings = good_rings(muons, 1)
    radius, ratio = rings["muonring_radius"], rings["muonefficiency_width"]
    ratio = ratio / radius
    edges = np.linspace(radius.min(), radius.max(), 11)
    place = np.minimum(np.searchsorted(edges, radius, side="right") - 1, 9)
    for i in np.unique(place).tolist():
        kept = sigma_clip(ratio[place == i], sigma=4, maxiters=5, cenfunc="mean")
        row = own[np.isclose(own["radius_low"].value, edges[i])][0]
        assert row["n_events"] == len(kept.compressed())
        assert row["n_clipped"] == int(kept.mask.sum())
        assert row["ratio"] == pytest.approx(kept.compressed().mean(), rel=1e-12)
        assert row["radius"].value == pytest.approx(radius[place == i][~kept.mask].mean())
        assert row["used"] == (row["n_events"] >= 100)
    assert sum(own["n_events"] + own["n_clipped"]) == len(radius)  # the largest radius with them


# -- what a table looks like ----------------------------------------------------------------------


def test_ctapipe_reads_the_tables(muons, run):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ctapipe.io import read_table
    path = run("throughput", muons, {"Campaign.time_bin": "1 h"}).paths[0]
    table = read_table(path, f"{THROUGHPUT}/tel_001")
    assert table.colnames[:9] == [
        *("mean", "median", "std", "sem", "method", "time_start", "time_end", "obs_id"),
        "n_events",
    ]
    assert table["time_start"].scale == "tai"
    assert table.meta["obs_ids"].tolist() == [2001, 2002, 2003]
    assert set(np.asarray(table["obs_id"]).tolist()) == {2001, 2002, 2003}
    assert table["obs_id"].dtype == np.int32
    line = read_table(run("psf", muons).paths[0], f"{PSF}/tel_001")
    assert line.colnames[:9] == [
        *("slope", "intercept", "slope_err", "intercept_err", "method", "chi2"),
        *("time_start", "time_end", "obs_id"),
    ]
    assert line["obs_id"].tolist() == [-1]  # of three observations


def test_nothing_is_written_into_the_input(muons, run, tmp_path):
    path = tmp_path / "in.h5"
    shutil.copy(muons[0], path)
    path.chmod(0o444)
    before = path.read_bytes()
    run("throughput", [path])
    run("psf", [path])
    assert path.read_bytes() == before


# -- where the peer goes wrong --------------------------------------------------------------------


def test_stereo_events_do_not_multiply_rings(tmp_path, run):
    """A ring counts once, however many telescopes its event triggered."""
    options = MuonSimulation(n_files=1, n_rings=3000, n_telescopes=4, stereo_fraction=1.0, seed=4)
    columns = simulate_rings(options, 0)
    mono = {**columns}
    # The same rings, each in an event of its own.
    mono["event_id"] = np.arange(len(mono["event_id"])) + 1
    write_rings(tmp_path / "stereo.h5", describe_telescopes(options), columns)
    write_rings(tmp_path / "mono.h5", describe_telescopes(options), mono)
    for kind, group in (("throughput", THROUGHPUT), ("psf", PSF)):
        stereo, alone = (run(kind, [tmp_path / f"{name}.h5"]) for name in ("stereo", "mono"))
        for tel_id in range(1, 5):
            one, two = (result.tables[f"{group}/tel_{tel_id:03d}"] for result in (stereo, alone))
            for name in one.colnames:
                if one[name].dtype.kind == "f" if hasattr(one[name], "dtype") else False:
                    np.testing.assert_array_equal(one[name], two[name], name)
            assert one["n_events"][0] == two["n_events"][0] < 900


def test_every_ring_has_the_time_of_its_telescope(tmp_path, run):
    """Two telescopes that see one event a minute apart: each has its own time."""
    event_id = np.repeat(np.arange(40), 2)
    tel_id = np.tile([1, 2], 40).astype(np.int16)
    time_ns = START_NS + event_id * 100 * S + np.tile([0, 60 * S], 40)
    path = write_file(tmp_path / "a.h5", 2, event_id=event_id, tel_id=tel_id, time_ns=time_ns)
    result = run("throughput", [path])
    for one in (1, 2):
        table = result.tables[f"{THROUGHPUT}/tel_{one:03d}"]
        start = table["time_start"][0].unix_tai - START_NS / S
        assert start == pytest.approx(60 * (one - 1), abs=1e-6)


def test_a_telescope_without_table_costs_nobody(muons, run):
    """The peer ends with NoSuchNodeError at the first telescope without muon table."""
    result = run("throughput", muons)
    trend = result.tables[f"{THROUGHPUT}_trend"]
    assert trend["tel_id"].tolist() == [1, 2, 3]
    assert trend["flags"].tolist() == ["G", "G", "W"]
    assert np.isnan(trend["mean"][2])
    assert any("two mirrors" in text for text in result.plan.warnings)
    assert f"{THROUGHPUT}/tel_003" not in result.tables
    lines = run("psf", muons).tables[f"{PSF}_overview"]
    assert lines["flags"].tolist()[2] == "W"


def test_dual_mirrors_with_a_table_of_nothing(tmp_path, run):
    """ctapipe writes a row of NaN for every image of a telescope with two mirrors."""
    options = MuonSimulation(n_files=1, n_rings=300, n_telescopes=1, n_dual_mirror=1)
    columns = simulate_rings(options, 0)
    nothing = ring_columns(
        50,
        obs_id=columns["obs_id"][0],
        event_id=10_000 + np.arange(50),
        tel_id=np.int16(2),
        time_ns=columns["time_ns"][:50],
        has_time=np.bool_(True),
    )
    both = {name: np.concatenate([columns[name], nothing[name]]) for name in columns}
    path = tmp_path / "a.h5"
    write_rings(path, describe_telescopes(options), both)
    for overrides in ({}, {"Campaign.time_bin": "5 min"}, {"SizeChunking.chunk_size": 50}):
        trend = run("throughput", [path], overrides).tables[f"{THROUGHPUT}_trend"]
        assert [flags.replace("G", "") for flags in trend["flags"].tolist()] == ["", "W"]
    assert run("psf", [path]).tables[f"{PSF}_overview"]["flags"].tolist()[1] == "W"


def test_running_twice_repeats_nothing(muons, run, tmp_path):
    """Results appended to the input would be there twice."""
    first = run("throughput", muons, workdir=tmp_path / "work")
    again = run("throughput", muons, workdir=tmp_path / "work")
    assert again.account.computed == 0
    assert again.digest == first.digest
    assert len(again.tables[f"{THROUGHPUT}/tel_001"]) == 1


def test_the_ring_at_the_upper_edge_counts(tmp_path, run):
    n = 500
    radius = np.linspace(1.0, 1.3, n)  # one ring at either end
    path = write_file(tmp_path / "a.h5", event_id=np.arange(n), muonring_radius=radius)
    points = run("psf", [path]).tables[f"{PSF}_bins"]
    assert sum(points["n_events"] + points["n_clipped"]) == n
    assert points["radius_high"].value.max() == radius[-1]


def test_errors_of_the_line_are_of_width_over_radius(tmp_path, run):
    """Twice the rings: errors smaller by sqrt(2), chi2 per degree of freedom stays near one."""
    errors, chi2 = [], []
    for n_rings in (8000, 16000):
        options = MuonSimulation(n_files=1, n_rings=n_rings, n_telescopes=1, seed=6)
        paths = simulate_ring_tables(tmp_path / str(n_rings), options)
        line = run("psf", paths).tables[f"{PSF}/tel_001"]
        errors.append(line["slope_err"].value[0])
        chi2.append(line["chi2"][0] / line["ndf"][0])
    assert errors[0] / errors[1] == pytest.approx(np.sqrt(2), rel=0.15)
    assert max(chi2) < 3.5


# -- odd data -------------------------------------------------------------------------------------


def test_rings_at_the_edges_of_time_bins(tmp_path, run):
    """The lower edge belongs to a bin, the upper to the next."""
    edge_ns = (1_577_880_037 + 3600 * 34_000) * S  # noon of 2020-01-01 UTC, in TAI, and on
    offset = np.array([-1, 0, 1, 3600 * S - 1, 3600 * S])
    path = write_file(tmp_path / "a.h5", event_id=np.arange(5), time_ns=edge_ns + offset)
    options = {"Campaign.time_bin": "1 h", "SigmaClippingAggregator.max_sigma": 10}
    table = run("throughput", [path], options).tables[f"{THROUGHPUT}/tel_001"]
    assert table["n_events"].tolist() == [1, 3, 1]
    assert np.diff(table["bin"]).tolist() == [1, 1]
    assert (table["flags"] == "Q").all()


def test_unsorted_times_change_nothing(tmp_path, run):
    options = MuonSimulation(n_files=1, n_rings=2000, seed=8)
    columns = simulate_rings(options, 0)
    order = np.random.default_rng(0).permutation(len(columns["obs_id"]))
    shuffled = {name: values[order] for name, values in columns.items()}
    digests = set()
    for name, rows in (("sorted", columns), ("shuffled", shuffled)):
        path = tmp_path / f"{name}.h5"
        write_rings(path, describe_telescopes(options), rows)
        result = run("throughput", [path], {"SizeChunking.chunk_size": 300})
        digests.add(result.digest)
    assert len(digests) == 1


def test_rings_without_a_time_are_left_out_and_counted(tmp_path, run):
    options = MuonSimulation(n_files=1, n_rings=2000, no_time_fraction=0.3, seed=9)
    result = run("throughput", simulate_ring_tables(tmp_path / "sim", options))
    flow = list(result.account.total.cut_flow.values())
    assert 0.6 < flow[-1] / flow[-2] < 0.8
    assert any(
        "have no time in the trigger table" in text for text in result.account.total.warnings
    )


@pytest.mark.parametrize("bins", [None, "1 d"])
def test_times_that_stand_for_none_make_no_bin_and_no_slope(tmp_path, run, bins):
    """ctapipe stores zeros for a time that is not known: not the first second of 1970."""
    path = write_file(tmp_path / "a.h5", event_id=np.arange(400))
    with tables.open_file(path, "a") as file:
        trigger = file.get_node(TRIGGER)
        rows = trigger.read()
        rows["time"][:50] = 0
        trigger[:] = rows
    options = {"Campaign.time_bin": bins} if bins else {}
    result = run("throughput", [path], options)
    table = result.tables[f"{THROUGHPUT}/tel_001"]
    assert table["time_start"].min().utc.datetime.year > 2000
    assert table["n_events"].sum() + table["n_clipped"].sum() == 350
    assert any("50 rings have no time" in text for text in result.account.total.warnings)
    flow = list(result.account.total.cut_flow.values())
    assert flow[-2] - flow[-1] == 50


def test_times_of_utc_are_37_s_later_in_tai(tmp_path, run):
    path = write_file(tmp_path / "a.h5", event_id=np.arange(200))
    tai = run("throughput", [path]).tables[f"{THROUGHPUT}/tel_001"]
    with tables.open_file(path, "a") as file:
        trigger = file.get_node(TRIGGER)
        trigger.attrs[f"CTAFIELD_{trigger.colnames.index('time')}_TIME_SCALE"] = "utc"
    utc = run("throughput", [path]).tables[f"{THROUGHPUT}/tel_001"]
    for name in ("time_start", "time_end", "time_mean"):
        assert np.allclose((utc[name] - tai[name]).to_value("s"), 37, atol=0.01, rtol=0)


def test_a_telescope_without_any_trigger_time_has_no_time_bin_and_is_told(tmp_path, run):
    tel_id = np.array([1] * 200 + [2] * 200, np.int16)
    path = write_file(tmp_path / "a.h5", 2, event_id=np.arange(400), tel_id=tel_id)
    with tables.open_file(path, "a") as file:
        trigger = file.get_node(TRIGGER)
        first = int(np.flatnonzero(trigger.col("tel_id") == 2)[0])
        trigger.remove_rows(first, first + 200)
    result = run("throughput", [path], {"Campaign.time_bin": "1 d"})
    assert any("no trigger of telescope 2 is known" in text for text in result.plan.warnings)
    assert result.tables[f"{THROUGHPUT}_trend"]["flags"][1] == "E"


def test_an_empty_file_is_told(tmp_path, run):
    (tmp_path / "a.h5").touch()
    with pytest.raises(CorruptedInput, match="is empty"):
        run("throughput", [tmp_path / "a.h5"])


def test_too_few_rings_are_flagged(tmp_path, run):
    n_few = 7
    tel_id = np.array([1] * 50 + [2] * n_few, np.int16)
    path = write_file(tmp_path / "a.h5", 3, event_id=np.arange(57), tel_id=tel_id)
    result = run("throughput", [path])
    trend = result.tables[f"{THROUGHPUT}_trend"]
    assert trend["flags"].tolist() == ["G", "Q", "E"]
    assert result.tables[f"{THROUGHPUT}/tel_002"]["n_events"].tolist() == [n_few]
    chunks = run("throughput", [path], {"SizeChunking.chunk_size": 20})
    assert f"{THROUGHPUT}/tel_002" not in chunks.tables
    assert chunks.tables[f"{THROUGHPUT}_trend"]["flags"].tolist()[1] == "E"
    allowed = {"SizeChunking.chunk_size": 20, "SizeChunking.allow_undersized_tables": True}
    table = run("throughput", [path], allowed).tables[f"{THROUGHPUT}/tel_002"]
    assert table["n_events"].tolist() == [n_few]
    lines = run("psf", [path]).tables[f"{PSF}_overview"]
    assert lines["flags"].tolist() == ["QG", "QG", "E"]


def test_no_rings_at_all(tmp_path, run):
    path = write_file(tmp_path / "a.h5", event_id=np.arange(5), muonefficiency_impact=50.0)
    with pytest.raises(NotEnoughData, match="cut flow"):
        run("throughput", [path])


def test_rings_of_one_radius_have_no_line(tmp_path, run):
    path = write_file(tmp_path / "a.h5", event_id=np.arange(200), muonring_radius=1.2)
    lines = run("psf", [path]).tables[f"{PSF}_overview"]
    assert (np.isnan(lines["slope"].value[0]), lines["flags"][0]) == (True, "G")


def test_one_value_for_all_rings(tmp_path, run):
    columns = {EFFICIENCY: 0.25, "event_id": np.arange(20)}
    path = write_file(tmp_path / "a.h5", **columns)
    row = run("throughput", [path]).tables[f"{THROUGHPUT}/tel_001"][0]
    assert (row["mean"], row["std"], row["n_events"], row["n_clipped"]) == (0.25, 0.0, 20, 0)
    assert row["median"] == pytest.approx(0.25, abs=0.02)


def test_nonsense_values_are_left_out(tmp_path, run):
    value = np.full(30, 0.2)
    value[:4] = [np.nan, np.inf, -np.inf, 1e6]
    radius = np.full(30, 1.2)
    radius[4:7] = [np.nan, 0.0, -1.0]
    value[7:9] = [-0.2, 0.0]
    width = np.full(30, 0.05)
    width[9:11] = [-0.05, 0.0]
    path = write_file(
        tmp_path / "a.h5",
        event_id=np.arange(30),
        muonring_radius=radius,
        muonefficiency_width=width,
        **{EFFICIENCY: value},
    )
    result = run("throughput", [path])
    assert result.tables[f"{THROUGHPUT}/tel_001"]["n_events"].tolist() == [19]
    assert list(result.account.total.cut_flow.values())[:2] == [30, 19]


@pytest.mark.parametrize("n_channels", [1, 2])
def test_cameras_of_one_and_of_two_gains(tmp_path, run, n_channels):
    options = MuonSimulation(n_files=1, n_rings=500, n_channels=n_channels, seed=3)
    table = run("throughput", simulate_ring_tables(tmp_path / "sim", options)).tables[
        f"{THROUGHPUT}/tel_001"
    ]
    assert table["mean"][0] == pytest.approx(0.2, abs=0.005)


def test_allowed_telescopes(muons, run):
    name = "CalculateThroughputWithMuons.allowed_tels"
    result = run("throughput", muons, {name: [2, 9]})
    assert result.tables[f"{THROUGHPUT}_trend"]["tel_id"].tolist() == [2]
    assert any("no input has telescope 9" in text for text in result.plan.warnings)


def test_criteria_with_and_without_units(muons, run):
    name = "MuonQualityQuery.quality_criteria"
    digests = {
        run("throughput", muons[:1], {name: [["impact", text]]}).digest
        for text in ("muonefficiency_impact < 8", "muonefficiency_impact < 800 * u.cm")
    }
    assert len(digests) == 1


# -- wrong input ----------------------------------------------------------------------------------


def test_the_same_file_twice(muons, run, tmp_path):
    shutil.copy(muons[0], tmp_path / "copy.h5")
    with pytest.raises(ConfigError, match="the same data twice"):
        run("throughput", [muons[0], tmp_path / "copy.h5"])


def test_rings_that_are_in_two_files(muons, run, tmp_path):
    columns = simulate_rings(OPTIONS, 0)
    some = {name: values[:100] for name, values in columns.items()}
    write_rings(tmp_path / "some.h5", describe_telescopes(OPTIONS), some)
    with pytest.raises(CorruptedInput, match=r"both hold telescope \d in event \d+ of obser"):
        run("throughput", [muons[0], tmp_path / "some.h5"])


def test_telescopes_of_an_event_in_files_of_their_own(tmp_path, run):
    """As an observatory may store them: no ring is in two files."""
    options = MuonSimulation(n_files=1, n_rings=1000, stereo_fraction=1.0, seed=5)
    columns, telescopes = simulate_rings(options, 0), describe_telescopes(options)
    write_rings(tmp_path / "all.h5", telescopes, columns)
    paths = []
    for tel_id in (1, 2):
        own = columns["tel_id"] == tel_id
        rows = {name: values[own] for name, values in columns.items()}
        paths.append(tmp_path / f"tel{tel_id}.h5")
        write_rings(paths[-1], telescopes, rows)
    apart, together = run("throughput", paths), run("throughput", [tmp_path / "all.h5"])
    assert apart.digest == together.digest


def test_other_files(tmp_path, run, campaign_file):
    with pytest.raises(MissingInput, match="neither tables of muon rings nor images"):
        run("throughput", [campaign_file])


@pytest.fixture
def campaign_file(tmp_path):
    from calibdask.array.simulate import ArraySimulation, simulate_array

    options = ArraySimulation(n_files=1, n_events=3, array="reduced")
    return simulate_array(tmp_path / "dl2", options).paths[0]


def test_arrays_that_contradict_each_other(muons, run, tmp_path):
    options = MuonSimulation(n_files=1, n_rings=100, n_telescopes=1, n_dual_mirror=1)
    path = tmp_path / "other.h5"
    write_rings(path, describe_telescopes(options), simulate_rings(options, 7))
    with pytest.raises(ConfigError, match=r"different arrays: telescope 2 is .*LST.* and SST"):
        run("throughput", [muons[0], path])


def test_units_that_are_not_expected(muons, run, tmp_path):
    path = tmp_path / "rad.h5"
    shutil.copy(muons[0], path)
    with tables.open_file(path, "a") as file:
        for tel_id in (1, 2):
            table = file.get_node(f"/dl1/event/telescope/muon/tel_{tel_id:03d}")
            number = table.colnames.index("muonring_radius")
            table.attrs[f"CTAFIELD_{number}_UNIT"] = "rad"
    with pytest.raises(CorruptedInput, match="muonring_radius is in rad, not in deg"):
        run("throughput", [path])


def test_time_bins_name_their_place(muons, run):
    one = run("throughput", muons, {"Campaign.time_bin": "1 d"})
    table = one.tables[f"{THROUGHPUT}/tel_001"]
    assert table.meta["time_bin_ns"] == 86_400 * S
    epoch = {"Campaign.time_bin": "1 d", "Campaign.epoch": "2020-01-02T12:00:00"}
    other = run("throughput", muons, epoch).tables[f"{THROUGHPUT}/tel_001"]
    assert (np.asarray(table["bin"]) - 1).tolist() == np.asarray(other["bin"]).tolist()
    assert digest_hdf5(one.paths[0]) == one.digest


def test_all_rings_with_the_plain_aggregator(muons, run):
    name = "CalculateThroughputWithMuons.aggregator_type"
    table = run("throughput", muons, {name: "PlainAggregator"}).tables[f"{THROUGHPUT}/tel_001"]
    value = good_rings(muons, 1)[EFFICIENCY]
    assert (table["n_events"][0], table["n_clipped"][0]) == (len(value), 0)
    assert table["mean"][0] == pytest.approx(value.mean(), rel=1e-12)
    assert table["median"][0] == pytest.approx(np.median(value), abs=0.02 * value.std())


@pytest.mark.parametrize("iterations", [1, 2])
def test_fewer_iterations(muons, run, iterations):
    overrides = {"SigmaClippingAggregator.iterations": iterations}
    table = run("throughput", muons[:1], overrides).tables[f"{THROUGHPUT}/tel_001"]
    value = good_rings(muons[:1], 1)[EFFICIENCY]
    kept = sigma_clip(value, sigma=4, maxiters=iterations, cenfunc="mean").compressed()
    assert table["n_events"][0] == len(kept)
    assert table["mean"][0] == pytest.approx(kept.mean(), rel=1e-12)


def test_a_campaign_that_runs_can_be_looked_at(muons, run, tmp_path):
    """Coefficients of the shards so far: after the first stage nothing is clipped yet."""
    result = run("throughput", muons[:1], workdir=tmp_path / "work")
    store = Store(tmp_path / "work" / "store")
    plan = calibdask.plan("calculate-throughput-muon", muons)
    found = preliminary(plan, WorkContext(plan.calibration, store))
    assert found.merged == (0,)
    table = found.tables[f"{THROUGHPUT}/tel_001"]
    assert abs(table["mean"][0] - result.tables[f"{THROUGHPUT}/tel_001"]["mean"][0]) < 0.01
    plan = calibdask.plan("calculate-psf-muon", muons)
    line = preliminary(plan, WorkContext(plan.calibration, store))
    assert line.tables == {}
    assert any("no telescope has bins of ring radius yet" in note for note in line.notes)

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import tables as pytables

from calibdask.errors import ConfigError
from calibdask.muon.simulate import (
    MuonSimulation,
    describe_telescopes,
    simulate_ring_tables,
    simulate_rings,
    true_efficiency,
    write_rings,
)
from calibdask.registry import SIMULATIONS
from tests.muon.conftest import OPTIONS
from tests.muon.toys import START_NS, S


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_equal_options_give_equal_bytes(tmp_path):
    options = MuonSimulation(n_files=2, n_rings=200, seed=5)
    one, two = (simulate_ring_tables(tmp_path / name, options) for name in "ab")
    assert [digest(path) for path in one] == [digest(path) for path in two]
    other = simulate_ring_tables(tmp_path / "c", MuonSimulation(n_files=2, n_rings=200, seed=6))
    assert digest(other[0]) != digest(one[0])
    # Another file more changes none of the others.
    more = simulate_ring_tables(tmp_path / "d", MuonSimulation(n_files=4, n_rings=400, seed=5))
    assert [digest(path) for path in more[:2]] == [digest(path) for path in one]


def test_the_truth_stands_beside_the_files(muons):
    truth = json.loads((muons[0].parent / "truth.json").read_text())
    assert set(truth["efficiency"]) == {"1", "2"}
    assert truth["width_over_radius"] == {"intercept": 0.13, "slope_per_deg": -0.08}
    start = true_efficiency(OPTIONS, np.array([1]), np.array([START_NS]))
    assert truth["efficiency"]["1"] == pytest.approx(start[0])


def test_rings_have_the_truth():
    options = MuonSimulation(
        n_files=1, n_rings=40_000, trend_per_day=-0.05, outlier_fraction=0.02, max_impact_m=10.0
    )
    columns = simulate_rings(options, 0)
    seen = np.isfinite(columns["muonring_radius"])
    assert seen.mean() == pytest.approx(1 - options.no_ring_fraction, abs=0.01)
    assert seen.sum() == pytest.approx(options.n_rings, rel=0.02)
    good = columns["muonefficiency_is_valid"] & ~columns["muonefficiency_parameters_at_limit"]
    value = columns["muonefficiency_optical_efficiency"]
    truth = true_efficiency(options, columns["tel_id"], columns["time_ns"])
    core = good & (np.abs(value - truth) < 5 * options.efficiency_sigma)
    assert (value - truth)[core].mean() == pytest.approx(0, abs=3e-4)
    assert (value - truth)[core].std() == pytest.approx(options.efficiency_sigma, rel=0.02)
    assert 1 - core.sum() / good.sum() == pytest.approx(options.outlier_fraction, abs=0.004)
    radius = columns["muonring_radius"][seen]
    ratio = columns["muonefficiency_width"][seen] / radius
    slope, intercept = np.polyfit(radius, ratio, 1)
    assert (slope, intercept) == (pytest.approx(-0.08, abs=2e-3), pytest.approx(0.13, abs=2e-3))
    impact = columns["muonefficiency_impact"][seen]
    assert np.mean(impact < 5) == pytest.approx(0.25, abs=0.01)  # uniform on the mirror


def test_faults(tmp_path):
    options = MuonSimulation(
        n_files=1,
        n_rings=600,
        n_telescopes=3,
        n_dual_mirror=2,
        stereo_fraction=0.5,
        no_time_fraction=0.2,
        shuffled_rows=True,
        effective_focal_length=False,
    )
    (path,) = simulate_ring_tables(tmp_path / "sim", options)
    with pytables.open_file(path) as file:
        tables = [node.name for node in file.get_node("/dl1/event/telescope/muon")]
        assert tables == ["tel_001", "tel_002", "tel_003"]
        rows = file.get_node("/dl1/event/telescope/muon/tel_001")[:]
        assert not np.all(np.diff(rows["event_id"]) > 0)
        trigger = file.get_node("/dl1/event/telescope/trigger")[:]
        _, counts = np.unique(trigger["event_id"], return_counts=True)
        assert set(counts.tolist()) <= {1, 2, 3}
        optics = file.get_node("/configuration/instrument/telescope/optics")[:]
        assert optics["n_mirrors"].tolist() == [1, 2]
        assert np.isnan(optics["effective_focal_length"][0])


def test_ctapipe_opens_the_files(tmp_path):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ctapipe.instrument import SubarrayDescription
        from ctapipe.io import TableLoader, read_table

        options = MuonSimulation(n_files=1, n_rings=100, n_dual_mirror=1, seed=1)
        (path,) = simulate_ring_tables(tmp_path / "sim", options)
        subarray = SubarrayDescription.from_hdf(path)
        assert subarray.tel_ids.tolist() == [1, 2, 3]
        assert int(subarray.tel[3].optics.n_mirrors) == 2
        muons = read_table(path, "/dl1/event/telescope/muon/tel_001")
        assert str(muons["muonefficiency_impact"].unit) == "m"
        with TableLoader(path, dl2=False) as loader:
            events = loader.read_telescope_events(
                dl1_images=False, dl1_parameters=False, dl1_muons=True
            )
        columns = simulate_rings(options, 0)
        assert len(events) == len(columns["event_id"])
        assert len(muons) == np.sum(columns["tel_id"] == 1)
        first = events[np.argsort(events["event_id"])][0]
        assert first["time"].unix_tai == pytest.approx(columns["time_ns"][0] / S, abs=1e-6)


def test_columns_are_ctapipes(tmp_path):
    """As ctapipe-process 0.32.0 --write-muon-parameters writes them."""
    (path,) = simulate_ring_tables(
        tmp_path / "sim", MuonSimulation(n_files=1, n_rings=10, n_telescopes=1)
    )
    with pytables.open_file(path) as file:
        dtype = file.get_node("/dl1/event/telescope/muon/tel_001").dtype
    from ctapipe.containers import (
        MuonEfficiencyContainer,
        MuonParametersContainer,
        MuonRingContainer,
    )

    expected = ["obs_id", "event_id", "tel_id"]
    for prefix, container in (
        ("muonring", MuonRingContainer),
        ("muonparameters", MuonParametersContainer),
        ("muonefficiency", MuonEfficiencyContainer),
    ):
        expected += [f"{prefix}_{name}" for name in container.fields]
    assert list(dtype.names) == expected
    assert [dtype[i].str for i in range(3)] == ["<i4", "<i8", "<i2"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("n_rings", 0),
        ("n_rings", 1.5),
        ("efficiency", "0.2"),
        ("outlier_fraction", 2.0),
        ("shuffled_rows", 1),
        ("n_channels", 3),
        ("seed", -1),
    ],
)
def test_options_out_of_range(option, value):
    with pytest.raises(ConfigError, match=option):
        MuonSimulation(**{option: value})


def test_an_existing_file_is_kept(tmp_path):
    options = MuonSimulation(n_files=1, n_rings=10)
    (path,) = simulate_ring_tables(tmp_path, options)
    with pytest.raises(ConfigError, match="exists already"):
        simulate_ring_tables(tmp_path, options)
    with pytest.raises(ConfigError, match="exists already"):
        write_rings(path, describe_telescopes(options), simulate_rings(options, 0))


def test_it_is_registered():
    simulation = SIMULATIONS["muon-tables"]
    assert simulation.options() is MuonSimulation

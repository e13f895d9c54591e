"""Columns of ctapipe's muon table, and those that we add: names and units, in order."""

from __future__ import annotations

from typing import Final

__all__ = ["CTAPIPE", "EFFICIENCY", "LIGHT", "MEASURED", "RING"]

type _Columns = tuple[tuple[str, str], ...]


def _named(ring: _Columns, light: _Columns, efficiency: _Columns) -> _Columns:
    return (
        *((f"muonring_{name}", unit) for name, unit in ring),
        *((f"muonparameters_{name}", unit) for name, unit in light),
        *((f"muonefficiency_{name}", unit) for name, unit in efficiency),
    )


RING: Final = tuple(
    (name, "deg")
    for name in (
        *("center_fov_lon", "center_fov_lat", "radius"),
        *("center_fov_lon_err", "center_fov_lat_err", "radius_err"),
        *("center_phi", "center_distance"),
    )
)
LIGHT: Final = (
    *(("containment", ""), ("completeness", ""), ("intensity_ratio", "")),
    *(("mean_squared_error", "deg2"), ("ring_intensity", ""), ("intensity_outside_ring", "")),
    *(("n_pixels_in_ring", ""), ("mean_intensity_outside_ring", ""), ("radial_std_dev", "deg")),
    *(("skewness", ""), ("excess_kurtosis", "")),
)
OF_CTAPIPE: Final = (
    *(("width", "deg"), ("impact", "m"), ("impact_x", "m"), ("impact_y", "m")),
    *(("optical_efficiency", ""), ("is_valid", ""), ("parameters_at_limit", "")),
    ("likelihood_value", ""),
)
MORE: Final = (
    *(("width_err", "deg"), ("impact_err", "m"), ("phi_err", "rad")),
    *(("optical_efficiency_err", ""), ("cov_efficiency_impact", "m")),
    *(("cov_efficiency_width", "deg"), ("gradient_norm", ""), ("n_iterations", "")),
    *(("n_starts", ""), ("misfit", ""), ("pedestal", ""), ("n_saturated_pixels", "")),
)
"""What ctapipe's table does not have: errors and quality of the fit."""

EFFICIENCY: Final = (*OF_CTAPIPE, *MORE)
CTAPIPE: Final = _named(RING, LIGHT, OF_CTAPIPE)
"""Columns of ctapipe's muon table, after those that name the event."""

MEASURED: Final = _named(RING, LIGHT, EFFICIENCY)
"""Columns that a fit fills."""

"""Cuts and model of the ring fit for one telescope: what the configuration comes to."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["RingOptions"]


class RingOptions(NamedTuple):
    """Cuts and model of the ring fit for one telescope; the defaults of the cuts are ctapipe's.

    Those that users have are described in `calibdask.muon.ring_config`, under the same names. All
    are floats, so that kernels have one specialisation.

    Attributes
    ----------
    min_pixels, min_intensity : float
        An image needs more cleaned pixels, and more light in them, in p.e.
    min_ring_pixels : float
        The annulus needs more pixels than this.
    min_containment : float
        And the camera a larger part of the ring.
    fit_circle : float
        1 where the likelihood may move the circle too (ctapipe fixes it): centre, radius and their
        errors are then its own. The Taubin fit makes wide rings too large, and so the efficiency
        too small, by 0.2 % at a width of 0.05° and 1.3 % at 0.2° in a camera with pixels of 0.1°.
    of_ctapipe : float
        1 where the model is ctapipe's (`calibdask.muon.intensity`); the noise in its likelihood is
        then `pedestal`, else what is measured off the ring.
    """

    picture_threshold_pe: float = 10.0
    boundary_threshold_pe: float = 5.0
    min_picture_neighbors: float = 2.0
    min_pixels: float = 100.0
    min_intensity: float = 500.0
    min_ring_pixels: float = 50.0
    min_containment: float = 0.5
    completeness_threshold: float = 30.0
    ratio_width: float = 1.5
    pedestal: float = 1.1
    ring_integration_width: float = 0.25
    outer_ring_width: float = 0.2
    spe_width: float = 0.5
    min_lambda_m: float = 300e-9
    max_lambda_m: float = 600e-9
    hole_radius_m: float = 0.0
    oversampling: float = 3.0
    fit_circle: float = 1.0
    of_ctapipe: float = 0.0
    saturation_pe: float = 0.0
    max_noise: float = 2.0
    max_misfit: float = 3.0

"""Cuts and model of the ring fit for one telescope: what the configuration comes to."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RingOptions"]


@dataclass(frozen=True)
class RingOptions:
    """Cuts and model of the ring fit for one telescope; the defaults of the cuts are ctapipe's.

    Those that users have are described in `calibdask.muon.config`, under the same names.

    Attributes
    ----------
    min_pixels, min_intensity : float
        An image needs more cleaned pixels, and more light in them, in p.e.
    min_ring_pixels : int
        The annulus needs more pixels than this.
    min_containment : float
        And the camera a larger part of the ring.
    fit_circle : bool
        Whether the likelihood may move the circle too (ctapipe fixes it): centre, radius and their
        errors are then its own. The Taubin fit makes wide rings too large, and so the efficiency
        too small, by 0.2 % at a width of 0.05° and 1.3 % at 0.2° in a camera with pixels of 0.1°.
    of_ctapipe : bool
        Whether the model is ctapipe's (`calibdask.muon.intensity`); the noise in its likelihood is
        then `pedestal`, else what is measured off the ring.
    """

    picture_threshold_pe: float = 10.0
    boundary_threshold_pe: float = 5.0
    min_picture_neighbors: int = 2
    min_pixels: int = 100
    min_intensity: float = 500.0
    min_ring_pixels: int = 50
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
    oversampling: int = 3
    fit_circle: bool = True
    of_ctapipe: bool = False
    saturation_pe: float = 0.0
    max_noise: float = 2.0
    max_misfit: float = 3.0

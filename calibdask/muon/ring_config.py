"""Options of the fit of rings to images: sections with the names of ctapipe's components."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from calibdask.config import Section, caseless, inner_section, option
from calibdask.config.fields import for_all, patterns
from calibdask.muon.ring_options import RingOptions
from calibdask.select import TelescopePatterns

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "EventSource",
    "MuonIntensityFitter",
    "MuonProcessor",
    "RingFit",
    "TailcutsImageCleaner",
]

_HOLE_RADIUS_M = (("type", "LST_*", 0.74), ("type", "MST_*", 0.59), ("type", "SST_1M_*", 0.38))

type _Patterns = Annotated[TelescopePatterns, patterns()]

_RING = RingOptions()


def _by_telescope(default: float | TelescopePatterns, help: str, unit: str | None = None) -> Any:
    """Declare an option of the ring fit, with one value or a list of patterns."""
    patterns = default if isinstance(default, TelescopePatterns) else for_all(float(default))
    return option(patterns, stage="map", help=help, unit=unit)


class MuonProcessor(Section):
    """What is measured of a ring, where rings are fitted to images."""

    hints: ClassVar[Mapping[str, str]] = {
        "ImageParameterQuery": "the cuts on images are ctapipe's defaults",
        "RingQuery": "the cuts on rings are ctapipe's defaults; select rings in MuonQualityQuery",
    }

    completeness_threshold: _Patterns = _by_telescope(
        _RING.completeness_threshold,
        "Light in a segment of the ring that makes it complete.",
        "photoelectrons",
    )
    ratio_width: _Patterns = _by_telescope(
        _RING.ratio_width, "Ring width for the intensity ratio, in pixel diameters."
    )
    pedestal: _Patterns = _by_telescope(
        _RING.pedestal, "Scatter of a pixel without light.", "photoelectrons"
    )
    ring_integration_width: _Patterns = _by_telescope(
        _RING.ring_integration_width, "Width for the light of the ring, in ring radii."
    )
    outer_ring_width: _Patterns = _by_telescope(
        _RING.outer_ring_width, "Width for the light outside of it, in ring radii."
    )


class MuonIntensityFitter(Section):
    """The fit of impact, width and efficiency, where rings are fitted to images."""

    spe_width: _Patterns = _by_telescope(
        _RING.spe_width, "Width of a photoelectron's distribution."
    )
    min_lambda_m: _Patterns = _by_telescope(
        _RING.min_lambda_m, "Shortest wavelength of the light.", "m"
    )
    max_lambda_m: _Patterns = _by_telescope(
        _RING.max_lambda_m, "Longest wavelength of the light.", "m"
    )
    hole_radius_m: _Patterns = _by_telescope(
        TelescopePatterns((("type", "*", 0.0), *_HOLE_RADIUS_M)),
        "Radius of the hole in the mirror.",
        "m",
    )
    oversampling: _Patterns = _by_telescope(
        _RING.oversampling, "Points in a pixel's angle for the line integral."
    )
    compatibility: Annotated[Literal["ctapipe"], caseless("ctapipe")] | None = option(
        None,
        stage="map",
        help="ctapipe: the model of ctapipe 0.32 with its fixed circle, and "
        "MuonProcessor.pedestal as noise. Its efficiencies are off by -4.7 % (hexagonal pixels), "
        "+27 % (square) and -22 % (round) on an absolute scale. Unless given, pixels count with "
        "their area and noise is measured off the ring.",
        example="ctapipe",
    )
    fit_circle: bool | None = option(
        None,
        stage="map",
        help="Whether the likelihood moves the circle, too: yes, unless compatibility is "
        "given. With the circle fixed at the fit of pixel positions, whose radius is too large for "
        "wide rings, the efficiency is low by 0.2 % (width 0.05 deg) to 1.3 % (0.2 deg).",
        example=False,
    )
    saturation_pe: _Patterns = _by_telescope(
        _RING.saturation_pe,
        "Charge that a pixel reads at most. Rings with a pixel at or above it are "
        "left out, and so are those where three pixels or more read the same largest charge to "
        "the last bit. 0: not known.",
        "photoelectrons",
    )
    max_noise: _Patterns = _by_telescope(
        _RING.max_noise,
        "Rings are left out where the noise measured off them is larger than so many "
        "times MuonProcessor.pedestal.",
    )
    max_misfit: _Patterns = _by_telescope(
        _RING.max_misfit,
        "Rings are left out where the chi2 of their pixels over its degrees of freedom "
        "is larger: a second ring, or a telescope that the model does not describe.",
    )


class TailcutsImageCleaner(Section):
    """Which pixels of an image count, where images come without a mask."""

    picture_threshold_pe: _Patterns = _by_telescope(
        _RING.picture_threshold_pe,
        "Charge of a pixel that is kept with its neighbours.",
        "photoelectrons",
    )
    boundary_threshold_pe: _Patterns = _by_telescope(
        _RING.boundary_threshold_pe,
        "Charge of a pixel that is kept beside one of these.",
        "photoelectrons",
    )
    min_picture_neighbors: _Patterns = _by_telescope(
        _RING.min_picture_neighbors, "Such neighbours that a pixel of the picture needs."
    )


class EventSource(Section):
    """How images are read."""

    focal_length_choice: Annotated[
        Literal["EFFECTIVE", "EQUIVALENT"], caseless("EFFECTIVE", "EQUIVALENT")
    ] = option(
        "EFFECTIVE",
        stage="map",
        help="Focal length that turns camera positions into angles, where rings are fitted "
        "to images. Tables of rings need none. Files of single telescopes often lack the effective "
        "one.",
    )


def _component(model: type[Section]) -> Any:
    return inner_section(model(), help="", alias=model.__name__)


class RingFit(Section):
    """How rings are fitted to images: the sections that stand at top level."""

    source: EventSource = _component(EventSource)
    cleaner: TailcutsImageCleaner = _component(TailcutsImageCleaner)
    processor: MuonProcessor = _component(MuonProcessor)
    fitter: MuonIntensityFitter = _component(MuonIntensityFitter)

    @property
    def of_ctapipe(self) -> bool:
        """Whether the model is ctapipe's."""
        return self.fitter.compatibility is not None

    @property
    def fit_circle(self) -> bool:
        """Whether the likelihood moves the circle."""
        chosen = self.fitter.fit_circle
        return not self.of_ctapipe if chosen is None else chosen

    def of_telescope(self, tel_id: int, description: str) -> RingOptions:
        """Return the options for one telescope."""
        values: dict[str, Any] = {"fit_circle": self.fit_circle, "of_ctapipe": self.of_ctapipe}
        for section in (self.cleaner, self.processor, self.fitter):
            for name, value in section:
                if isinstance(value, TelescopePatterns):
                    values[name] = float(value.resolve([tel_id], [description], option=name)[0])
        for name in ("min_picture_neighbors", "oversampling"):
            values[name] = round(values[name])
        return RingOptions(**values)

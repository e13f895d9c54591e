"""Selection of pairs by image sizes: what they need besides that of energies."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from calibdask.array.image_size import HIGHER_CUT, NARROWER_WINDOW, harder_selections, pair_size
from calibdask.array.model import log_ratio
from calibdask.array.network.pairs import distance_range
from calibdask.array.pairs import by_telescope

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from calibdask.array.pairs import Layout
    from calibdask.array.throughput_config import RelativeThroughputFitter
    from calibdask.select import TelescopePatterns

    type Columns = dict[str, NDArray[Any]]

__all__ = ["ImagePairs"]


@dataclass(frozen=True)
class ImagePairs:
    """How pairs of images are selected, and what is done about the biases of their sizes.

    Attributes
    ----------
    least : TelescopePatterns or None
        Smallest geometric mean of the two sizes of a pair.
    estimator : str or None
        Of the network.
    distance_term : bool
        Whether the slope over the impact distance is fitted.
    windowed : bool
        Whether the asymmetry of the impact distances has a limit.
    """

    least: TelescopePatterns | None
    estimator: str | None
    distance_term: bool
    windowed: bool

    @classmethod
    def of(cls, fitter: RelativeThroughputFitter, *, windowed: bool) -> Self:
        """Take the options of the fitter."""
        least, term = fitter.minimum_pair_intensity, bool(fitter.distance_term)
        return cls(least, fitter.estimator, term, windowed)

    def with_distances(self, *, known: bool) -> Self:
        """Fit to pairs whose impact distances and their limits are known, or are not."""
        return replace(self, distance_term=self.distance_term and known, windowed=known)

    @property
    def selections(self) -> tuple[str, ...]:
        """Harder selections that show the systematic error."""
        if self.estimator == "asymmetry":
            return ()
        return (HIGHER_CUT,) * (self.least is not None) + (NARROWER_WINDOW,) * self.windowed

    def map_config(self) -> dict[str, Any]:
        """Return what pair events and their first summary depend on."""
        return {"distance_term": self.distance_term, "selections": list(self.selections)}

    def select(
        self,
        layout: Layout,
        rows: Columns,
        flow: dict[str, int],
        impact_1_m: NDArray[np.float64] | None,
        impact_2_m: NDArray[np.float64] | None,
        limit: NDArray[np.float64] | None,
    ) -> tuple[Columns, dict[str, int]]:
        """Leave out small pairs; add distances, and which rows pass harder selections.

        A size that is no number stays, to be counted.

        Parameters
        ----------
        layout : Layout
            The telescopes.
        rows : dict of str to ndarray, shape (N, ...)
            Pairs, with ``tel_id_1``, ``tel_id_2``, ``x_1`` and ``x_2``.
        flow : dict of str to int
            Cut flow so far.
        impact_1_m, impact_2_m, limit : ndarray of float64, shape (N,), or None
            Impact distances and the limit of their asymmetry.
        """
        size = pair_size(rows["x_1"], rows["x_2"])
        least = None
        if self.least is not None:
            option = "RelativeThroughputFitter.minimum_pair_intensity"
            one, two = (
                by_telescope(self.least, layout, rows[name], option)
                for name in ("tel_id_1", "tel_id_2")
            )
            least = np.maximum(one, two)
            large = np.flatnonzero(~(size < least))
            rows = {name: values[large] for name, values in rows.items()}
            size, least = size[large], least[large]
            impact_1_m, impact_2_m, limit = (
                None if values is None else values[large]
                for values in (impact_1_m, impact_2_m, limit)
            )
            flow = {**flow, "minimum_pair_intensity": len(large)}
        passed = harder_selections(size, least, impact_1_m, impact_2_m, limit)
        rows |= {name: passed[name] for name in self.selections}
        if self.distance_term and impact_1_m is not None and impact_2_m is not None:
            rows["log_distance"] = log_ratio(impact_1_m, impact_2_m)
            rows["distance_range"] = distance_range(impact_1_m, impact_2_m)
        return rows, flow

    def in_words(self) -> list[str]:
        """Describe what was done about the biases of image sizes."""
        cut, estimator = self.least, self.estimator
        said = [
            "No cut on the size of a pair was made."
            if cut is None
            else "A cut on the geometric mean of both sizes treats the two alike.",
            "The mean asymmetry was fitted as it is, for comparison."
            if estimator == "asymmetry"
            else "Scatter leaves the centre of ln x1 - ln x2 where it is.",
        ]
        if self.distance_term:
            said.append("What the two impact distances differ by was fitted, one slope by type.")
        if HIGHER_CUT in self.selections:
            said.append("A systematic error is told by a cut on the pair 1.5 times as high.")
        if NARROWER_WINDOW in self.selections:
            said.append("A systematic error is told by half of the window of equal distances.")
        return said

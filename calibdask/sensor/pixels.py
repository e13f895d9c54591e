"""What every calibration takes from a tile: moments with masks, and the bias to subtract."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from calibdask.errors import MissingInput
from calibdask.flags import PixelFlag
from calibdask.sensor.settings import nearest, settings_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from calibdask.sensor.metadata import StackKey
    from calibdask.sensor.settings import Setting
    from calibdask.sensor.summary import Stack
    from calibdask.sensor.tiles import SensorFacts, TileStacks

__all__ = [
    "BIAS_SOURCES",
    "BiasLevel",
    "Pixels",
    "bias_level",
    "gather",
    "saturated_in",
    "saturation_dn",
    "without_flicker",
]

type Floats = NDArray[np.float64]
type Mask = NDArray[np.bool_]

BIAS_SOURCES = (
    "bias product, same ISO",
    "bias frames, same ISO",
    "bias product, other ISO",
    "bias frames, other ISO",
    "black level of the file",
    "none",
)
"""Where the bias that was subtracted came from, best first; results carry the index."""


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """Moments of the frames of a tile.

    Attributes
    ----------
    mean, variance : ndarray of float64, shape (h, w)
        DN, and unbiased in DN^2; NaN with too few frames.
    n : ndarray of int64, shape (h, w)
        Frames.
    saturated : ndarray of bool, shape (h, w)
        Saturated in some frame, or so near to it on average that noise may be cut off.
    clipped : ndarray of bool, shape (h, w)
        At zero in some frame of integers.
    stuck : ndarray of bool, shape (h, w)
        Saturated in more than half of the frames.
    frame_means : ndarray of float64, shape (n_frames,)
        Mean over the lit pixels of the tile of each frame, DN.
    lit : ndarray of bool, shape (h, w)
        Neither masked border nor overscan.
    level : ndarray of float64, shape (4,)
        Mean of all frames over all lit pixels of the sensor, at the places of its filter pattern,
        DN: the same in every tile.
    """

    mean: Floats
    variance: Floats
    n: NDArray[np.int64]
    saturated: Mask
    clipped: Mask
    stuck: Mask
    frame_means: Floats
    lit: Mask
    level: Floats

    @property
    def good(self) -> Mask:
        """Lit pixels with a mean and a variance that nothing has cut off."""
        return (self.n >= 2) & ~self.saturated & ~self.clipped & self.lit

    @property
    def mean_variance(self) -> Floats:
        """Variance of the mean, DN^2."""
        with np.errstate(divide="ignore", invalid="ignore"):
            result: Floats = self.variance / self.n
        return result

    def mask(self) -> NDArray[np.uint16]:
        """Describe by pixel flags why a pixel is not good."""
        mask = np.zeros(self.mean.shape, np.uint16)
        mask[self.n < 2] |= PixelFlag.FEW_FRAMES.bit
        mask[self.saturated] |= PixelFlag.SATURATED.bit
        mask[self.clipped] |= PixelFlag.CLIPPED.bit
        mask[~self.lit] = PixelFlag.BORDER.bit
        return mask


def gather[K](
    tile: TileStacks, kind: str, key_of: Callable[[StackKey], K], *, near_saturation: float = 0.95
) -> dict[K, Pixels]:
    """Join the stacks of a kind that share a key.

    Parameters
    ----------
    tile : TileStacks
        The tile.
    kind : str
        Kind of stacks.
    key_of : callable
        What of a stack's key is to be kept apart, e.g. its ISO speed.
    near_saturation : float
        Fraction of the saturation at which a mean counts as saturated.

    Returns
    -------
    dict
        In the order of the keys of the tile.
    """
    joined: dict[K, Any] = {}
    for key, stack in tile.stacks.items():
        if key.kind == kind:
            name = key_of(key)
            joined[name] = joined[name].merge(stack) if name in joined else stack
    limit = saturation_dn(tile.sensor)
    result = {}
    for name, stack in joined.items():
        mean, variance = stack.moments()
        saturated = saturated_in(stack, tile.sensor)
        if limit is not None:
            saturated |= mean >= near_saturation * limit
        stuck = 2 * stack.n_saturated.astype(np.int64) > stack.n
        if limit is not None:  # counted only above the level that the files state
            stuck |= stack.minimum >= limit
        result[name] = Pixels(
            mean,
            variance,
            stack.n.astype(np.int64),
            saturated,
            # Only integers end at zero.
            (stack.minimum == 0) if stack.minimum.dtype.kind == "u" else np.zeros(mean.shape, bool),
            stuck,
            stack.frames.frame_sum / max(float(np.count_nonzero(tile.lit)), 1.0),
            tile.lit,
            stack.frames.facts[:, -4:].mean(axis=0) / np.maximum(tile.sensor.n_lit_by_place, 1.0),
        )
    return result


def saturated_in(stack: Stack, sensor: SensorFacts) -> Mask:
    """Return which pixels reach saturation in some frame."""
    saturated: Mask = stack.n_saturated > 0
    if sensor.saturation_dn is not None:  # it may have been found later, in the frames themselves
        saturated |= (stack.maximum >= sensor.saturation_dn) & (stack.n > 0)
    return saturated


def saturation_dn(sensor: SensorFacts) -> int | None:
    """Return the value at which pixels saturate: as stated, or the converter's largest."""
    if sensor.saturation_dn is None and sensor.bit_depth is not None:
        return int(2**sensor.bit_depth - 1)
    return sensor.saturation_dn


@dataclass(frozen=True, slots=True, eq=False)
class BiasLevel:
    """The bias of the pixels of a tile.

    Attributes
    ----------
    value, variance : ndarray of float64, shape (h, w)
        DN, and the variance of its error, DN^2. NaN where a pixel has none.
    source : int
        Index in `BIAS_SOURCES`.
    level : ndarray of float64, shape (4,)
        Mean at the places of the filter pattern: of the whole sensor, but for a product of the
        tile.
    """

    value: Floats
    variance: Floats
    source: int
    level: Floats


def bias_level(tile: TileStacks, setting: Setting) -> BiasLevel:
    """Return the best bias there is for a setting of the camera: see `BIAS_SOURCES`.

    Another ISO speed's bias leaves fixed pattern behind (a peer that uses the lowest ISO's bias at
    all of them keeps 7 DN rms at ISO 1600 in its own simulation), so results say when it was used.

    Raises
    ------
    MissingInput
        The product given as bias is another job's.
    """
    product = tile.given.get("bias", {})
    available = settings_of(product, "bias")
    if "bias" in tile.given and not available:
        raise MissingInput(
            "the option bias names an output without maps of bias: it is to be that of the job bias"
        )
    stacks = gather(tile, "bias_readnoise", lambda key: key.setting)
    for same in (True, False):
        found = _nearest(available, setting, same=same)
        if found is not None:
            group = f"bias/{found.name}"
            value = np.asarray(product[f"{group}/bias"], np.float64)
            error = np.asarray(product[f"{group}/bias_error"], np.float64)
            return BiasLevel(value, error**2, 0 if same else 2, _by_place(tile, value))
        found = _nearest(list(stacks), setting, same=same)
        if found is not None:
            pixels = stacks[found]
            return BiasLevel(pixels.mean, pixels.mean_variance, 1 if same else 3, pixels.level)
    level = np.asarray(tile.sensor.black_level, np.float64)
    zero = np.zeros(tile.shape)
    if level.size == 4:
        rows, columns = np.indices(tile.shape)
        black = level.reshape(2, 2)[(rows + tile.y0) % 2, columns % 2]
        return BiasLevel(black, zero, 4, level)
    if level.size == 1:
        return BiasLevel(np.full(tile.shape, level[0]), zero, 4, np.full(4, level[0]))
    return BiasLevel(zero.copy(), zero, 5, np.zeros(4))


def _by_place(tile: TileStacks, values: Floats) -> Floats:
    """Average lit pixels at each place of the filter pattern; over all where a tile lacks one."""
    good = tile.lit & np.isfinite(values)
    overall = float(values[good].mean()) if good.any() else 0.0
    level = np.full(4, overall)
    for place in range(4):
        here = (slice((place // 2 - tile.y0) % 2, None, 2), slice(place % 2, None, 2))
        if good[here].any():
            level[place] = values[here][good[here]].mean()
    return level


def _nearest(available: list[Setting], wanted: Setting, *, same: bool) -> Setting | None:
    found, differing = nearest(wanted, available, tuple(wanted.known))
    if same and (found is None or differing or found.iso != wanted.iso):
        return None
    return found


def without_flicker(pixels: Pixels, signal: Floats) -> tuple[Floats, float]:
    """Take out of the variances what the light's own variation from frame to frame adds.

    All pixels see the same relative variation f, which adds (f signal)^2. It shows in the means of
    the frames, beyond what the noise of single pixels leaves there.

    Parameters
    ----------
    pixels : Pixels
        Moments of one level.
    signal : ndarray of float64, shape (h, w)
        DN above the bias.

    Returns
    -------
    variance : ndarray of float64, shape (h, w)
        DN^2. Its expectation is right whether or not the light varies.
    flicker2 : float
        Relative variance of the light; 0 where none shows.
    """
    means, seen = pixels.frame_means, np.isfinite(pixels.variance) & pixels.lit
    lit = signal[np.isfinite(signal) & pixels.lit]
    light = float(lit.mean()) if lit.size else 0.0
    if len(means) < 2 or not seen.any() or light <= 0:
        return pixels.variance, 0.0
    own = float(pixels.variance[seen].mean()) / np.count_nonzero(pixels.lit)
    flicker2 = (float(means.var(ddof=1)) - own) / light**2
    return pixels.variance - flicker2 * signal**2, max(flicker2, 0.0)

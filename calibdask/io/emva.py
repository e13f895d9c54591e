"""Descriptor files of EMVA 1288 measurements: which image was taken with which light.

One record a line, by the standard's reference data sets: ``n bits width height``, ``b exposure_ns
photons`` and ``d exposure_ns`` begin a measurement with and without light, and each ``i path``
after it names one of its images, relative to the descriptor and with backslashes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from calibdask.errors import ConfigError, CorruptedInput, MissingInput

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["EmvaDescriptor", "EmvaImage", "find_emva_descriptor", "read_emva_descriptor"]

_PAIR: Final = 2


@dataclass(frozen=True, slots=True)
class EmvaImage:
    """How one image was taken.

    Attributes
    ----------
    kind : str
        "emva_bright" or "emva_dark" for a pair of images, with "_spatial" behind it for more.
    exposure_s : float
        Time of exposure, in s.
    photons : float
        Mean number of photons a pixel received; 0 without light.
    """

    kind: str
    exposure_s: float
    photons: float


@dataclass(frozen=True)
class EmvaDescriptor:
    """What a descriptor file says.

    Attributes
    ----------
    path : Path
        The file.
    bit_depth : int
        Bits of a pixel.
    shape : (int, int)
        Rows and columns.
    images : mapping of Path to EmvaImage
        The images by their absolute path.
    """

    path: Path
    bit_depth: int
    shape: tuple[int, int]
    images: dict[Path, EmvaImage]


def find_emva_descriptor(folder: Path) -> Path | None:
    """Return the descriptor in a folder, None where there is none (ConfigError for several)."""
    found = sorted(one for one in folder.glob("EMVA1288*.txt") if one.is_file())
    if len(found) > 1:
        raise ConfigError(
            f"{folder}: has {len(found)} descriptors of EMVA 1288"
            f" ({', '.join(one.name for one in found)}); leave one of them there"
        )
    return found[0] if found else None


def read_emva_descriptor(path: Path) -> EmvaDescriptor:
    """Read a descriptor.

    Raises
    ------
    MissingInput
        There is no such file.
    CorruptedInput
        A line makes no sense, an image is named twice, a measurement has fewer than the two images
        that each consists of, or an image is not there.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise MissingInput(f"{path}: {error.strerror or error}") from error
    bit_depth, shape = 0, (0, 0)
    blocks: list[tuple[str, float, float, list[Path]]] = []
    begins: list[int] = []
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words or words[0].startswith("#") or words[0] == "v":
            continue
        try:
            match words[0], words[1:]:
                case "n", [bits, width, height]:
                    bit_depth, shape = int(bits), (int(height), int(width))
                case "b", [exposure, light]:
                    blocks.append(("emva_bright", float(exposure), float(light), []))
                case "d", [exposure]:
                    blocks.append(("emva_dark", float(exposure), 0.0, []))
                case "i", [*_]:
                    name = line.split(maxsplit=1)[1].strip().replace("\\", "/")
                    blocks[-1][3].append((path.parent / name).absolute())
                case _:
                    raise ValueError  # noqa: TRY301  told below with its line
            if words[0] in ("b", "d"):
                begins.append(number)
        except (ValueError, IndexError) as error:
            raise CorruptedInput(
                f"{path}, line {number}: {line!r} is none of 'n bits width height', 'b exposure_ns"
                " photons', 'd exposure_ns' and, after one of these, 'i path'"
            ) from error
    if not bit_depth:
        raise CorruptedInput(f"{path}: has no line 'n bits width height'")
    if not blocks:
        raise CorruptedInput(f"{path}: names no measurement ('b ...' or 'd ...')")
    for number, (*_, paths) in zip(begins, blocks, strict=True):
        if len(paths) < _PAIR:
            raise CorruptedInput(
                f"{path}, line {number}: the measurement has {len(paths)} images, and each has two"
                " or more: the file may be cut short; copy it again"
            )
    images: dict[Path, EmvaImage] = {}
    for kind, exposure_ns, photons, paths in blocks:
        # The spatial standard deviations come from many images, the rest from pairs.
        kind_of = kind if len(paths) <= _PAIR else f"{kind}_spatial"
        for one in paths:
            if one in images:
                raise CorruptedInput(f"{path}: names {one} twice")
            images[one] = EmvaImage(kind_of, exposure_ns * 1e-9, photons)
    if absent := [one for one in images if not one.exists()]:
        raise CorruptedInput(
            f"{path}: {len(absent)} of the {len(images)} images that it names are not there, such"
            f" as {absent[0]}; copy them again"
        )
    return EmvaDescriptor(path, bit_depth, shape, images)

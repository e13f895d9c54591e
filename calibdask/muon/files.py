"""What files hold for the muon jobs, and how they are cut into shards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from calibdask.engine.protocol import Cell, Piece, Survey
from calibdask.errors import CorruptedInput, WrongKind
from calibdask.io.images import has_images, inspect_images, is_hdf5
from calibdask.io.kinds import file_kind
from calibdask.io.muon import has_muon_tables, inspect_muons, ring_times
from calibdask.stats.timebins import NO_TIME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from calibdask.muon.state import Telescope
    from calibdask.stats.timebins import TimeBins

__all__ = ["FileFacts", "facts_of", "pieces_of"]

_END_OBS_ID = 1 << 47  # so that number of observation and telescope fit 64 bits together
_ROW_BYTES = 400  # memory of a ring while it is read, joined, sorted and summarised
_RING_BYTES = 85
"""A kept ring with its key: for the plan's estimate of the store, where all are selected."""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What a survey found in a file.

    Attributes
    ----------
    telescopes : tuple of (int, str, int)
        Number, description and mirrors of each.
    obs_ids : tuple of int
        Observation blocks.
    process_type : str or None
        "CTA PROCESS TYPE".
    cells : tuple of Cell
        Those that rings of the file may fall into.
    n_rows : dict of int to int
        Rings, or images, of each telescope to calibrate.
    row_bytes : dict of int to int
        Memory of one while it is worked on.
    more_bytes : int
        Memory besides.
    kind : str
        ``rings``: tables of rings; ``images``: DL1 images; ``events``: what ctapipe opens.
    product_id : str or None
        "CTA PRODUCT ID".
    """

    telescopes: tuple[Telescope, ...]
    obs_ids: tuple[int, ...]
    process_type: str | None
    cells: tuple[Cell, ...]
    n_rows: dict[int, int]
    row_bytes: dict[int, int]
    more_bytes: int
    kind: str
    product_id: str | None

    @property
    def peak_bytes(self) -> int:
        """Memory of all rows."""
        return sum(n * self.row_bytes[tel_id] for tel_id, n in self.n_rows.items())


def facts_of(
    path: str,
    columns: Sequence[str],
    wanted_of: Callable[[Iterable[int]], list[int]],
    focal_length_choice: Literal["EFFECTIVE", "EQUIVALENT"],
    bins: TimeBins | None,
) -> FileFacts:
    """Look at what a file holds: tables of rings, else images to fit them to.

    Parameters
    ----------
    path : str
        The file.
    columns : sequence of str
        Columns of muon tables that will be read.
    wanted_of : callable
        Picks those of the telescopes that are to be calibrated.
    focal_length_choice : str
        ``EFFECTIVE`` or ``EQUIVALENT``.
    bins : TimeBins or None
        Time bins.
    """
    of_events = not is_hdf5(path)
    times: Mapping[int, NDArray[np.int64]] = {}
    if not of_events and has_muon_tables(path):
        info = inspect_muons(path, columns)
        wanted = wanted_of(info.n_rows)
        if bins is not None:
            times = ring_times(path, wanted)
        telescopes = [(t, text, info.n_mirrors[t]) for t, text in info.telescopes.items()]
        n_rows = {tel_id: info.n_rows[tel_id] for tel_id in wanted}
        kind, row_bytes = "rings", dict.fromkeys(wanted, _ROW_BYTES)
        more_bytes, product_id = info.n_trigger_rows * 64, info.product_id
        obs_ids, process_type = info.obs_ids, info.process_type
    elif of_events or has_images(path):
        from calibdask.muon.rings import unusable

        found = inspect_images(path, focal_length_choice)
        # Where there is no model, there is no cell: the telescope is flagged.
        wanted = [t for t in wanted_of(found.cameras) if not unusable(found.cameras[t])]
        times = found.times_ns
        telescopes = [(t, c.tel_description, c.n_mirrors) for t, c in found.cameras.items()]
        n_rows = {tel_id: len(times[tel_id]) for tel_id in wanted}
        kind, row_bytes = "events" if of_events else "images", found.bytes_per_image
        more_bytes, product_id = 0, found.product_id
        obs_ids, process_type = found.obs_ids, found.process_type
    else:
        file_kind(path)  # refuses a file that should have events and has none
        raise WrongKind(f"{path}: holds neither tables of muon rings nor images")
    if max(obs_ids, default=0) >= _END_OBS_ID:
        raise CorruptedInput(f"{path}: has obs_id {max(obs_ids)}, which does not fit 47 bits")
    cells = tuple(
        (tel_id, number)
        for tel_id in wanted
        for number in ([0] if bins is None else _bins_of(times[tel_id], bins))
    )
    return FileFacts(
        tuple(telescopes),
        obs_ids,
        process_type,
        cells,
        n_rows,
        row_bytes,
        more_bytes,
        kind,
        product_id,
    )


def _bins_of(time_ns: NDArray[np.int64], bins: TimeBins) -> list[int]:
    """List the bins that times fall into."""
    numbers: list[int] = np.unique(bins.index(time_ns[time_ns != NO_TIME])).tolist()
    return numbers


def pieces_of(survey: Survey, shard_bytes: int) -> Iterable[Piece]:
    """Cut a file that is too large for one shard.

    Tables of rings are cut into equal parts of every table, DL1 images by telescope and rows; other
    files are read from their beginning and stay whole.
    """
    facts: FileFacts = survey.facts
    if not facts.cells:
        return
    peak_bytes, size = facts.peak_bytes, survey.source.size
    n_parts = max(1, -(-peak_bytes // shard_bytes))
    if facts.kind == "images" and n_parts > 1:
        yield from _pieces_of_images(survey, shard_bytes)
        return
    if facts.kind == "events":
        n_parts = 1
    for number in range(n_parts):
        yield Piece(
            (survey.source,),
            (("part", number), ("of", n_parts)) if n_parts > 1 else (),
            facts.cells,
            order=(*survey.order, number),
            n_bytes=size // n_parts,
            # Every part looks its times up in the whole trigger table.
            peak_bytes=peak_bytes // n_parts + facts.more_bytes,
            stored_bytes=_RING_BYTES * sum(facts.n_rows.values()) // n_parts,
        )


def _pieces_of_images(survey: Survey, shard_bytes: int) -> Iterable[Piece]:
    facts: FileFacts = survey.facts
    for tel_id, n_rows in facts.n_rows.items():
        row_bytes = facts.row_bytes[tel_id]
        n_parts = max(1, -(-n_rows * row_bytes // shard_bytes))
        cells = tuple(cell for cell in facts.cells if cell[0] == tel_id)
        for number in range(n_parts):
            first, stop = (n_rows * i // n_parts for i in (number, number + 1))
            share = (stop - first) * row_bytes / max(facts.peak_bytes, 1)
            yield Piece(
                (survey.source,),
                (("tel_id", tel_id), ("first_row", first), ("stop_row", stop)),
                cells,
                order=(*survey.order, tel_id, number),
                n_bytes=int(survey.source.size * share),
                peak_bytes=(stop - first) * row_bytes,
                stored_bytes=_RING_BYTES * (stop - first),
            )

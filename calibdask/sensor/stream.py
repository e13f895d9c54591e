"""Frames of files as stacks, and those of a shard, read one after the other."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from calibdask.errors import CalibdaskError, CorruptedInput, TransientError
from calibdask.io.frames import read_frame, read_frames
from calibdask.sensor.metadata import (
    Conflict,
    StackKey,
    stack_keys,
)
from calibdask.sensor.tiles import SensorFacts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from calibdask.engine.protocol import (
        InputRef,
        Survey,
    )
    from calibdask.io.frame_info import FrameInfo
    from calibdask.sensor.config import Frames


__all__ = ["Frame", "FrameStream", "Surveyed", "frames_of", "sensor_facts", "values_of"]


@dataclass(frozen=True, slots=True)
class Surveyed:
    """What a look at a file's metadata gave, and where its sources contradict each other."""

    info: FrameInfo
    conflicts: tuple[Conflict, ...] = ()


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of the plan.

    Attributes
    ----------
    source : InputRef
        Its file.
    info : FrameInfo
        What is known of the file's frames.
    index : int
        Its place in the file.
    """

    source: InputRef
    info: FrameInfo
    index: int

    @property
    def name(self) -> int:
        """64 bits that stand for its content and place: names of files play no part."""
        text = f"{self.source.identity}#{self.index}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def frames_of(
    surveys: Sequence[Survey], frames: Frames | None = None
) -> dict[StackKey, list[Frame]]:
    """Put the frames of all files into stacks, in order of time and path.

    Parameters
    ----------
    surveys : sequence of Survey
        Their facts are `Surveyed`.
    frames : Frames, optional
        As for `stack_keys`.
    """
    stacks: dict[StackKey, list[Survey]] = {}
    keys = stack_keys([survey.facts.info for survey in surveys], frames)
    for survey, key in zip(surveys, keys, strict=True):
        stacks.setdefault(key, []).append(survey)
    return {
        key: [
            Frame(one.source, one.facts.info, index)
            for one in sorted(members, key=_time_and_path)
            for index in range(one.facts.info.n_frames)
        ]
        for key, members in sorted(stacks.items())
    }


def _time_and_path(survey: Survey) -> tuple[str, str]:
    info: FrameInfo = survey.facts.info
    return info.time, info.path


def sensor_facts(infos: Sequence[FrameInfo], saturated_from: int | None = None) -> SensorFacts:
    """Return what frames that go together have in common.

    Parameters
    ----------
    infos : sequence of FrameInfo
        At least one; of one sensor.
    saturated_from : int, optional
        Where a value counts as saturated, if it is not what the files state.
    """
    levels = [one.white_level for one in infos if one.white_level is not None]
    times = sorted(one.time for one in infos if one.time)
    first = infos[0]
    return SensorFacts(
        camera=next((one.camera for one in infos if one.camera), ""),
        shape=first.shape,
        pattern=first.pattern,
        black_level=next((one.black_level for one in infos if one.black_level), ()),
        saturation_dn=min(levels, default=None) if saturated_from is None else saturated_from,
        bit_depth=next((one.bit_depth for one in infos if one.bit_depth is not None), None),
        serial_number=next((one.serial_number for one in infos if one.serial_number), ""),
        binning=next((one.binning for one in infos if one.binning), ()),
        window=next((one.window for one in infos if one.window), ()),
        unit=next((one.unit for one in infos if one.unit), ""),
        first=times[0] if times else "",
        last=times[-1] if times else "",
        lit_areas=next((one.lit_areas for one in infos if one.lit_areas), ()),
    )


class FrameStream:
    """The frames of a shard, read one after the other while they are folded.

    A frame that cannot be read, or that holds no number at all, is left out and kept in `lost`: the
    others are good. Of single values that are no numbers `odd` tells; they enter no sum.
    """

    def __init__(self, frames: Sequence[tuple[str, Frame]]) -> None:
        self.frames = frames
        self.lost: list[tuple[str, CalibdaskError]] = []
        self.odd: list[str] = []
        self.n_read = 0
        self._memory: NDArray[Any] | None = None  # of the last frame

    def __iter__(self) -> Iterator[tuple[str, int, NDArray[Any]]]:
        """Return label of the stack, name and values of each frame; the next overwrites them.

        Raises
        ------
        TransientError
            The file system does not answer.
        CalibdaskError
            None of the frames can be read: the error of the first.
        """
        for (label, path), members in groupby(
            self.frames, key=lambda one: (one[0], one[1].source.path)
        ):
            yield from self._read(label, path, [frame for _, frame in members])
        if self.lost and not self.n_read:
            raise self.lost[0][1]

    def _read(
        self, label: str, path: str, frames: Sequence[Frame]
    ) -> Iterator[tuple[str, int, NDArray[Any]]]:
        """Read frames that lie side by side in one file."""
        done = 0
        try:
            for frame, values in zip(frames, values_of(path, frames, self._memory), strict=True):
                _check_values(frame, values)
                self._memory = values if values.flags.writeable else None
                done += 1
                if values.dtype.kind == "f" and not self._has_numbers(frame, values):
                    continue
                self.n_read += 1
                yield label, frame.name, values
        except TransientError:
            raise
        except CalibdaskError as error:
            lost = len(frames) - done
            if lost > 1:
                error = type(error)(
                    f"{error}; {lost} frames from number {frames[done].index} on are lost"
                )
            self.lost.append((path, error))

    def _has_numbers(self, frame: Frame, values: NDArray[Any]) -> bool:
        """Return warnings about values that are not finite; a frame without any other is lost."""
        n_bad = values.size - int(np.count_nonzero(np.isfinite(values)))
        where = f"{frame.info.path}: frame {frame.index}"
        if n_bad == values.size:
            error = CorruptedInput(f"{where} holds no number: all its values are NaN or infinite")
            self.lost.append((frame.info.path, error))
        elif n_bad:
            self.odd.append(
                f"{where}: {n_bad} of {values.size} values are NaN or infinite and are left out"
            )
        return n_bad < values.size


def values_of(
    path: str, frames: Sequence[Frame], memory: NDArray[Any] | None = None
) -> Iterator[NDArray[Any]]:
    """Read frames that lie side by side; each may overwrite the one before if there is `memory`."""
    first = frames[0]
    if first.info.n_frames == 1:
        yield read_frame(path, 0, first.info.hdu, memory)
    else:
        yield from read_frames(path, first.index, frames[-1].index + 1, first.info.hdu, memory)


def _check_values(frame: Frame, values: NDArray[Any]) -> None:
    """Refuse values that are not what the file's metadata promised."""
    if values.shape != frame.info.shape or values.dtype != np.dtype(frame.info.dtype):
        raise CorruptedInput(
            f"{frame.info.path}: frame {frame.index} is {values.shape} {values.dtype}, but its"
            f" metadata say {frame.info.shape} {frame.info.dtype}"
        )

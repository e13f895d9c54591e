"""Camera images of anything that ctapipe has an event source for."""

from __future__ import annotations

import threading
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from calibdask.errors import CorruptedInput, MissingInput
from calibdask.io.camera_images import (
    Camera,
    FocalLengthChoice,
    ImageInfo,
    TelescopeImages,
    no_focal_length,
)
from calibdask.io.times import ns_of_time

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


__all__ = ["inspect_events", "read_events"]

_TRUNCATED: Final = ".*(truncated|_read_next_object)"


# warnings.catch_warnings is for the whole process.
_CTAPIPE: Final = threading.Lock()


@contextmanager
def _event_source(path: Path | str, choice: FocalLengthChoice) -> Iterator[Any]:
    """Open a file with ctapipe; what it tells of a bad file becomes our exceptions."""
    from ctapipe.io import EventSource

    with _CTAPIPE, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        # All that ctapipe and eventio do about a file that ends too early is to say so.
        warnings.filterwarnings("always", message=_TRUNCATED)
        try:
            source = EventSource(input_url=Path(path), focal_length_choice=choice)
        except (ValueError, OSError) as error:
            raise MissingInput(
                f"{path}: ctapipe has no event source for it ({str(error).splitlines()[0]})"
            ) from error
        except RuntimeError as error:
            if "focal" not in str(error):
                raise
            raise no_focal_length(path, "a telescope", choice) from error
        except EOFError as error:
            raise _ends_early(path) from error
        with source:
            try:
                yield source
            except EOFError as error:
                raise _ends_early(path) from error
        if caught:
            raise _ends_early(path)


def _ends_early(path: Path | str) -> CorruptedInput:
    return CorruptedInput(f"{path}: ends too early; copy or produce it again")


def _source_camera(path: Path | str, source: Any, tel_id: int, choice: str) -> Camera:
    telescope = source.subarray.tel[tel_id]
    optics, geometry = telescope.optics, telescope.camera.geometry
    length = getattr(optics, f"{choice.lower()}_focal_length").to_value("m")
    if not length > 0:
        raise no_focal_length(path, str(telescope), choice)
    return Camera.from_lengths(
        tel_id,
        str(telescope),
        (
            int(getattr(optics.n_mirrors, "value", optics.n_mirrors)),
            float(optics.mirror_area.to_value("m2")),
            float(length),
        ),
        (
            geometry.pix_x.to_value("m"),
            geometry.pix_y.to_value("m"),
            geometry.pix_area.to_value("m2"),
        ),
        str(geometry.pix_type.value),
        str(geometry.grid_type.value),
    )


def _time_ns(event: Any, tel_id: int) -> int:
    """Return the time of a telescope's trigger, in whole ns as ctapipe's files have it."""
    trigger = event.trigger
    return int(ns_of_time(trigger.tel[tel_id].time if tel_id in trigger.tel else trigger.time))


def inspect_events(path: Path | str, choice: FocalLengthChoice) -> ImageInfo:
    """Look at what a file of events holds: it is read to its end."""
    cameras: dict[int, Camera] = {}
    times: dict[int, list[int]] = {}
    n_events = 0
    with _event_source(path, choice) as source:
        obs_ids = {int(number) for number in source.obs_ids}
        for event in source:
            n_events += 1
            obs_ids.add(int(event.index.obs_id))
            for tel_id in _telescopes(event):
                if tel_id not in cameras:
                    cameras[tel_id] = _source_camera(path, source, tel_id, choice)
                times.setdefault(tel_id, []).append(_time_ns(event, tel_id))
        process = "Simulation" if source.is_simulation else "Observation"
    order = sorted(cameras)
    return ImageInfo(
        tuple(sorted(obs_ids)),
        n_events,
        {tel_id: cameras[tel_id] for tel_id in order},
        {tel_id: np.array(times[tel_id], np.int64) for tel_id in order},
        {tel_id: 5 * 4 * len(cameras[tel_id].pixel_x_rad) for tel_id in order},
        None,
        process,
    )


def _telescopes(event: Any) -> list[int]:
    """Telescopes with data in an event, at whatever level they are."""
    return sorted({int(t) for level in (event.r1, event.dl0, event.dl1) for t in level.tel})


def read_events(
    path: Path | str, choice: FocalLengthChoice, wanted: int | None, rows: tuple[int, int] | None
) -> Iterator[TelescopeImages]:
    """Read the images of a file of events, one telescope after the other."""
    from ctapipe.calib import CameraCalibrator

    cameras: dict[int, Camera] = {}
    keys: dict[int, list[tuple[int, int, int]]] = {}
    images: dict[int, list[NDArray[np.float32]]] = {}
    with _event_source(path, choice) as source:
        calibrate = CameraCalibrator(subarray=source.subarray)
        for event in source:
            telescopes = [one for one in _telescopes(event) if wanted in (None, one)]
            for tel_id in telescopes:
                if tel_id not in cameras:
                    cameras[tel_id] = _source_camera(path, source, tel_id, choice)
                    keys[tel_id], images[tel_id] = [], []
            if any(cameras[tel_id].n_mirrors == 1 for tel_id in telescopes):
                calibrate(event)
            for tel_id in telescopes:
                number = len(keys[tel_id])
                index = event.index
                time_ns = _time_ns(event, tel_id)
                keys[tel_id].append((int(index.obs_id), int(index.event_id), time_ns))
                chosen = rows is None or rows[0] <= number < rows[1]
                if chosen and cameras[tel_id].n_mirrors == 1:
                    images[tel_id].append(_event_image(event, tel_id))
    if wanted is not None and wanted not in cameras:
        raise MissingInput(f"{path}: has no images of telescope {wanted}")
    for tel_id in sorted(cameras):
        first, stop = rows or (0, len(keys[tel_id]))
        table = np.array(keys[tel_id], np.int64)[first:stop]
        image = np.array(images.pop(tel_id), np.float32).reshape(len(table), -1)
        yield TelescopeImages(
            cameras[tel_id],
            table[:, 0].copy(),
            table[:, 1].copy(),
            table[:, 2].copy(),
            image if cameras[tel_id].n_mirrors == 1 else np.empty((len(table), 0), np.float32),
            None,
        )


def _event_image(event: Any, tel_id: int) -> NDArray[np.float32]:
    """Return the calibrated image; ctapipe fills broken pixels from others, here they stay out."""
    image: NDArray[np.float32]
    image = np.atleast_2d(np.array(event.dl1.tel[tel_id].image, np.float32))[0]
    selected = event.dl0.tel[tel_id].selected_gain_channel
    coefficients = event.monitoring.tel[tel_id].camera.coefficients
    broken = coefficients.outlier_mask if coefficients is not None else None
    if broken is not None:
        broken = np.atleast_2d(broken)
        pixel = np.arange(len(image))
        channel = np.zeros(len(image), int) if selected is None else selected
        image[broken[np.minimum(channel, len(broken) - 1), pixel]] = np.nan
    image[~np.isfinite(image)] = np.nan
    return image

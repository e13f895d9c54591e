"""Writing of simulated DL1 and DL2 files in ctapipe's layout: instrument, observation, events.

The tables are those of ctapipe 0.32 (`ctapipe.io.DataWriter`), so that its readers open them.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from calibdask.io.pytables import write_root_attributes, write_table
from calibdask.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import tables
    from numpy.typing import NDArray

    type Columns = Mapping[str, NDArray[Any]]

__all__ = [
    "TAI_MINUS_UTC_S",
    "CameraDescription",
    "OpticsDescription",
    "TelescopeDescription",
    "square_camera",
    "write_instrument",
    "write_observation",
    "write_reference_metadata",
    "write_subarray_triggers",
    "write_telescope_table",
    "write_telescope_triggers",
    "write_transformed",
    "write_triggers",
]

TAI_MINUS_UTC_S: Final = 37
_EARTH_RADIUS_M: Final = 6_378_137.0  # WGS84, at the equator
_MJD_OF_1970: Final = 40587.0
SUBARRAY_EVENT: Final = 32  # ctapipe.containers.EventType.SUBARRAY
_NS_PER_S: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class OpticsDescription:
    """Mirrors of a telescope type."""

    name: str = "LST"
    size_type: str = "LST"
    reflector_shape: str = "PARABOLIC"
    mirror_area_m2: float = 386.73
    n_mirrors: int = 1
    n_mirror_tiles: int = 198
    equivalent_focal_length_m: float = 28.0
    effective_focal_length_m: float = 29.3


@dataclass(frozen=True, slots=True, eq=False)
class CameraDescription:
    """Pixels and readout of a camera, in metres in the focal plane."""

    name: str
    pixel_x_m: NDArray[np.float64]
    pixel_y_m: NDArray[np.float64]
    pixel_area_m2: NDArray[np.float64]
    pixel_type: str = "square"
    grid: str = "square"
    pixel_rotation_deg: float = 0.0
    camera_rotation_deg: float = 0.0
    n_channels: int = 1
    n_samples: int = 40
    sampling_rate_ghz: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class TelescopeDescription:
    """A telescope of a subarray."""

    tel_id: int
    optics: OpticsDescription
    camera: CameraDescription
    position_m: tuple[float, float, float] = field(default=(0.0, 0.0, 16.0))

    @property
    def description(self) -> str:
        """What ctapipe's patterns match."""
        return f"{self.optics.size_type}_{self.optics.name}_{self.camera.name}"


def square_camera(
    name: str, n_side: int, pixel_size_m: float, n_channels: int = 1
) -> CameraDescription:
    """Return a camera of square pixels on a square grid."""
    centre_m = (np.arange(n_side) - (n_side - 1) / 2) * pixel_size_m
    x_m, y_m = np.meshgrid(centre_m, centre_m)
    area_m2 = np.full(n_side**2, pixel_size_m**2)
    return CameraDescription(name, x_m.ravel(), y_m.ravel(), area_m2, n_channels=n_channels)


def write_reference_metadata(
    file: tables.File,
    *,
    description: str,
    levels: str,
    identity: str,
    obs_id: int,
    start_s: float,
    instrument: str = "unspecified",
) -> None:
    """Write the observatory's "CTA ..." attributes.

    Parameters
    ----------
    file : tables.File
        From `calibdask.io.pytables.create_hdf5`.
    description, levels : str
        Of the product, e.g. "DL1_MUON".
    identity : str
        What the file was made from: equal text gives an equal product id.
    obs_id : int
        Observation block.
    start_s : float
        When it begins, in seconds of TAI since 1970: the date of everything.
    instrument : str
        Name of the array.
    """
    product = uuid.uuid5(uuid.NAMESPACE_URL, f"calibdask-simulation:{identity}")
    begin = datetime.fromtimestamp(start_s - TAI_MINUS_UTC_S, tz=UTC)
    date = begin.strftime("%Y-%m-%d %H:%M:%S.000")
    write_root_attributes(
        file,
        {
            "CTA REFERENCE VERSION": "1",
            "CTA CONTACT ORGANIZATION": "unknown",
            "CTA CONTACT NAME": "unknown",
            "CTA CONTACT EMAIL": "unknown",
            "CTA PRODUCT DESCRIPTION": description,
            "CTA PRODUCT CREATION TIME": date,
            "CTA PRODUCT ID": str(product),
            "CTA PRODUCT DATA CATEGORY": "Sim",
            "CTA PRODUCT DATA LEVELS": levels,
            "CTA PRODUCT DATA ASSOCIATION": "Subarray",
            "CTA PRODUCT DATA MODEL NAME": "ASWG",
            "CTA PRODUCT DATA MODEL VERSION": "v7.6.0",
            "CTA PRODUCT FORMAT": "hdf5",
            "CTA PROCESS TYPE": "Simulation",
            "CTA PROCESS SUBTYPE": "",
            "CTA PROCESS ID": str(obs_id),
            "CTA ACTIVITY NAME": "calibdask simulate",
            "CTA ACTIVITY TYPE": "software",
            "CTA ACTIVITY ID": str(uuid.uuid5(product, "activity")),
            "CTA ACTIVITY START TIME": date,
            "CTA ACTIVITY STOP TIME": date,
            "CTA ACTIVITY SOFTWARE NAME": "calibdask",
            "CTA ACTIVITY SOFTWARE VERSION": __version__,
            "CTA INSTRUMENT SITE": "Other",
            "CTA INSTRUMENT CLASS": "Other",
            "CTA INSTRUMENT TYPE": "unspecified",
            "CTA INSTRUMENT SUBTYPE": "unspecified",
            "CTA INSTRUMENT VERSION": "unspecified",
            "CTA INSTRUMENT ID": instrument,
        },
    )


def write_instrument(
    file: tables.File,
    telescopes: Sequence[TelescopeDescription],
    *,
    subarray: str = "calibdask",
    altitude_m: float = 2150.0,
) -> None:
    """Write what `ctapipe.instrument.SubarrayDescription.from_hdf` reads.

    Parameters
    ----------
    file : tables.File
        From `calibdask.io.pytables.create_hdf5`.
    telescopes : sequence of TelescopeDescription
        In the order of the layout table. Equal names mean equal optics and cameras.
    subarray : str
        Its name.
    altitude_m : float
        Of the ground above the sea.
    """
    optics = [one for _, one in sorted({t.optics.name: t.optics for t in telescopes}.items())]
    cameras = [one for _, one in sorted({t.camera.name: t.camera for t in telescopes}.items())]
    optics_names = [one.name for one in optics]
    camera_names = [one.name for one in cameras]
    position_m = np.array([one.position_m for one in telescopes], np.float32)
    origin = {
        "ORIGIN": "ctapipe.instrument.SubarrayDescription",
        "SUBARRAY": subarray,
        "SOFT_VER": "0.32.0",
    }
    write_table(
        file,
        "/configuration/instrument/subarray/layout",
        {
            "tel_id": np.array([one.tel_id for one in telescopes], np.uint16),
            "name": np.array([one.optics.name for one in telescopes]),
            "type": np.array([one.optics.size_type for one in telescopes]),
            "pos_x": position_m[:, 0],
            "pos_y": position_m[:, 1],
            "pos_z": position_m[:, 2],
            "camera_name": np.array([one.camera.name for one in telescopes]),
            "optics_name": np.array([one.optics.name for one in telescopes]),
            "camera_index": np.array([camera_names.index(one.camera.name) for one in telescopes]),
            "optics_index": np.array([optics_names.index(one.optics.name) for one in telescopes]),
            "tel_description": np.array([one.description for one in telescopes]),
        },
        units={"pos_x": "m", "pos_y": "m", "pos_z": "m"},
        attributes=origin
        | {
            "TAB_TYPE": "subarray",
            "TAB_VER": "2.0",
            "name": subarray,
            "reference_itrs_x": _EARTH_RADIUS_M + altitude_m,
            "reference_itrs_y": 0.0,
            "reference_itrs_z": 0.0,
        },
    )
    write_table(
        file,
        "/configuration/instrument/telescope/optics",
        {
            "optics_name": np.array(optics_names),
            "size_type": np.array([one.size_type for one in optics]),
            "reflector_shape": np.array([one.reflector_shape for one in optics]),
            "mirror_area": np.array([one.mirror_area_m2 for one in optics]),
            "n_mirrors": np.array([one.n_mirrors for one in optics]),
            "n_mirror_tiles": np.array([one.n_mirror_tiles for one in optics]),
            "equivalent_focal_length": np.array([o.equivalent_focal_length_m for o in optics]),
            "effective_focal_length": np.array([o.effective_focal_length_m for o in optics]),
        },
        units={
            "mirror_area": "m**2",
            "equivalent_focal_length": "m",
            "effective_focal_length": "m",
        },
        attributes=origin | {"TAB_TYPE": "optics", "TAB_VER": "4.0"},
    )
    for i, camera in enumerate(cameras):
        _write_camera(file, i, camera)


def _write_camera(file: tables.File, index: int, camera: CameraDescription) -> None:
    """Write pixels, and a readout with a Gaussian reference pulse."""
    group = "/configuration/instrument/telescope/camera"
    n_pixels = len(camera.pixel_x_m)
    write_table(
        file,
        f"{group}/geometry_{index}",
        {
            "pix_id": np.arange(n_pixels),
            "pix_x": camera.pixel_x_m,
            "pix_y": camera.pixel_y_m,
            "pix_area": camera.pixel_area_m2,
        },
        units={"pix_x": "m", "pix_y": "m", "pix_area": "m**2"},
        attributes={
            "CAM_ID": camera.name,
            "PIX_TYPE": camera.pixel_type,
            "GRID": camera.grid,
            "PIX_ROT": camera.pixel_rotation_deg,
            "CAM_ROT": camera.camera_rotation_deg,
            "TAB_TYPE": "ctapipe.instrument.CameraGeometry",
            "TAB_VER": "2.1",
        },
    )
    time_ns = np.arange(0, 25, 0.1)
    pulse = np.exp(-0.5 * ((time_ns - 12.5) / 2) ** 2)
    shapes = {f"reference_pulse_shape_channel{i}": pulse for i in range(camera.n_channels)}
    write_table(
        file,
        f"{group}/readout_{index}",
        shapes | {"reference_pulse_sample_time": time_ns},
        units={"reference_pulse_sample_time": "ns"},
        attributes={
            "CAM_ID": camera.name,
            "NCHAN": camera.n_channels,
            "NPIXELS": n_pixels,
            "NSAMPLES": camera.n_samples,
            "SAMPFREQ": camera.sampling_rate_ghz,
            "REFWIDTH": 0.1,
            "TAB_TYPE": "ctapipe.instrument.CameraReadout",
            "TAB_VER": "3.0",
        },
    )


def write_observation(
    file: tables.File,
    obs_id: int,
    start_s: float,
    duration_s: float,
    *,
    altitude_deg: float = 70.0,
    azimuth_deg: float = 180.0,
    scheduled: bool = True,
) -> None:
    """Write an observation block.

    Parameters
    ----------
    file : tables.File
        From `calibdask.io.pytables.create_hdf5`.
    obs_id : int
        Its number.
    start_s, duration_s : float
        Begin in seconds of TAI since 1970, and length.
    altitude_deg, azimuth_deg : float
        Where the telescopes point. ctapipe's event source needs an altitude of NaN, for unknown:
        beside a pointing it wants a pickled enum.
    scheduled : bool
        Write its scheduling block as well, which ctapipe's event source needs.
    """
    start_mjd = start_s / 86400 + _MJD_OF_1970
    row = {
        "obs_id": np.uint64(obs_id),
        "sb_id": np.uint64(1),
        "producer_id": np.str_("calibdask"),
        "state": np.int64(1),  # ctapipe.containers.ObservationBlockState.COMPLETED_SUCCEDED
        "subarray_pointing_lat": np.float32(altitude_deg),
        "subarray_pointing_lon": np.float32(azimuth_deg),
        "subarray_pointing_frame": np.int64(0),  # ctapipe.containers.CoordinateFrameType.ALTAZ
        "scheduled_duration": np.float64(duration_s / 60),
        "scheduled_start_time": np.float64(start_mjd),
        "actual_start_time": np.float64(start_mjd),
        "actual_duration": np.float64(duration_s / 60),
    }
    if scheduled:
        # -1: UNKNOWN
        scheduling = {"sb_id": 1, "sb_type": -1, "observing_mode": -1, "pointing_mode": -1}
        write_table(
            file,
            "/configuration/observation/scheduling_block",
            {name: np.array([value]) for name, value in scheduling.items()}
            | {"sb_id": np.array([1], np.uint64), "producer_id": np.array(["calibdask"])},
        )
    units = {"subarray_pointing_lat": "deg", "subarray_pointing_lon": "deg"}
    write_transformed(
        file,
        "/configuration/observation/observation_block",
        {name: np.array([value]) for name, value in row.items()},
        units | {"scheduled_duration": "min", "actual_duration": "min"},
    )


def write_triggers(
    file: tables.File,
    telescopes: Sequence[TelescopeDescription],
    columns: Columns,
    *,
    event_type: int = SUBARRAY_EVENT,
) -> None:
    """Write the trigger tables of array and telescopes.

    Parameters
    ----------
    file : tables.File
        From `calibdask.io.pytables.create_hdf5`.
    telescopes : sequence of TelescopeDescription
        In the order of the layout.
    columns : mapping of str to ndarray, shape (N,)
        ``obs_id``, ``event_id``, ``tel_id`` and ``time_ns`` (TAI since 1970) of every telescope
        that triggered, in the order of the table. An event's own time is its telescopes' first.
    event_type : int
        `ctapipe.containers.EventType`.
    """
    time_ns = np.asarray(columns["time_ns"], np.int64)
    index = {name: np.asarray(columns[name]) for name in ("obs_id", "event_id", "tel_id")}
    write_telescope_triggers(file, {**index, "time": _stored_time(time_ns)}, event_type=event_type)
    # Numbered by their first row, so that the events are in the order of their telescopes.
    keys = np.stack([index["obs_id"], index["event_id"]], axis=1).astype(np.int64)
    _, first, event = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    event = rank[event.reshape(-1)]
    first = np.sort(first)
    earliest = np.full(len(first), np.iinfo(np.int64).max)
    np.minimum.at(earliest, event, time_ns)
    triggered = np.zeros((len(first), len(telescopes)), np.bool_)
    column = {one.tel_id: i for i, one in enumerate(telescopes)}
    triggered[event, [column[number] for number in index["tel_id"].tolist()]] = True
    of_events = {name: index[name][first] for name in ("obs_id", "event_id")}
    times = {"time": _stored_time(earliest)}
    write_subarray_triggers(file, of_events | times, triggered, event_type=event_type)


def write_subarray_triggers(
    file: tables.File,
    columns: Columns,
    triggered: NDArray[np.bool_],
    *,
    event_type: int = SUBARRAY_EVENT,
) -> None:
    """Write the trigger table of the array.

    Parameters
    ----------
    file : tables.File
        From `calibdask.io.pytables.create_hdf5`.
    columns : mapping of str to ndarray, shape (E,) or (E, 2)
        ``obs_id``, ``event_id`` and ``time`` (as stored: seconds and quarter-nanoseconds).
    triggered : ndarray of bool, shape (E, T)
        Which telescopes, in the order of the layout.
    event_type : int
        `ctapipe.containers.EventType`.
    """
    write_transformed(
        file,
        "/dl1/event/subarray/trigger",
        {
            "obs_id": np.asarray(columns["obs_id"], np.int32),
            "event_id": np.asarray(columns["event_id"], np.int64),
            "time": columns["time"],
            "tels_with_trigger": triggered,
            "event_type": np.full(len(triggered), event_type, np.int64),
        },
    )


def write_telescope_triggers(
    file: tables.File, columns: Columns, *, event_type: int = SUBARRAY_EVENT
) -> None:
    """Write the trigger table of the telescopes.

    Parameters
    ----------
    file : tables.File
        From `calibdask.io.pytables.create_hdf5`.
    columns : mapping of str to ndarray, shape (N,) or (N, 2)
        ``obs_id``, ``event_id``, ``tel_id`` and ``time`` (as stored).
    event_type : int
        `ctapipe.containers.EventType`.
    """
    n = len(columns["obs_id"])
    write_transformed(
        file,
        "/dl1/event/telescope/trigger",
        {
            "obs_id": np.asarray(columns["obs_id"], np.int32),
            "event_id": np.asarray(columns["event_id"], np.int64),
            "tel_id": np.asarray(columns["tel_id"], np.int16),
            "time": columns["time"],
            "event_type": np.full(n, event_type, np.int64),
            "n_trigger_pixels": np.full(n, -1, np.int64),  # not simulated
        },
    )


def write_telescope_table(
    file: tables.File, group: str, tel_id: int, columns: Columns, units: Mapping[str, str]
) -> None:
    """Write a table of one telescope, ``GROUP/tel_NNN``, with its index columns as ctapipe's."""
    index: dict[str, NDArray[Any]] = {
        "obs_id": np.asarray(columns["obs_id"], np.int32),
        "event_id": np.asarray(columns["event_id"], np.int64),
        "tel_id": np.full(len(columns["obs_id"]), tel_id, np.int16),
    }
    write_transformed(file, f"{group}/tel_{tel_id:03d}", {**index, **columns, **index}, units)


def _stored_time(time_ns: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Seconds and quarter-nanoseconds: the inverse of `calibdask.stats.timebins.ctao_time_ns`."""
    return np.stack([time_ns // _NS_PER_S, time_ns % _NS_PER_S * 4], axis=1).astype(np.uint32)


def write_transformed(
    file: tables.File, path: str, columns: Columns, units: Mapping[str, str] | None = None
) -> None:
    """Write a table with the transforms that ctapipe notes for times, telescope masks and enums.

    ctapipe also pickles the classes of its enums into attributes; its table readers do without,
    and a file that carries no pickle can be opened by anybody.

    Parameters
    ----------
    file : tables.File
        From `calibdask.io.pytables.create_hdf5`.
    path : str
        Of the table.
    columns : mapping of str to ndarray
        By ctapipe's names, which tell the transforms.
    units : mapping of str to str, optional
        Units of columns.
    """
    times = [name for name, values in columns.items() if name == "time" and values.ndim == 2]
    transforms: dict[str, object] = {}
    for i, name in enumerate(columns):
        if name in ("scheduled_start_time", "actual_start_time"):
            transforms[f"CTAFIELD_{i}_TRANSFORM"] = "time"
            transforms[f"CTAFIELD_{i}_TIME_SCALE"] = "tai"
            transforms[f"CTAFIELD_{i}_TIME_FORMAT"] = "mjd"
        elif name == "tels_with_trigger" or name.endswith("_telescopes"):
            transforms[f"CTAFIELD_{i}_TRANSFORM"] = "tel_list_to_mask"
        elif name in ("event_type", "state", "subarray_pointing_frame"):
            transforms[f"CTAFIELD_{i}_TRANSFORM"] = "enum"
    write_table(file, path, columns, units=units, times=times, attributes=transforms)

"""Event-wise asymmetries of pairs of telescopes, one file for each DL2 file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from calibdask.array.asymmetry_config import (
    CalculateEnergyAsymmetry,
    CalculateImageAsymmetry,
    energy_section,
    image_section,
)
from calibdask.array.config import FURTHER, OLD_NAME, SELECTION
from calibdask.array.from_dl2 import FromDl2, layout_of_file, type_of
from calibdask.array.model import asymmetry, asymmetry_uncertainty
from calibdask.array.network.pairs import PairEvents, PairSummary, summarise_pairs
from calibdask.array.pairs import event_keys, select_pairs
from calibdask.engine.protocol import (
    ALL,
    Cell,
    Files,
    Output,
    Reduced,
    Rows,
    Shard,
    Summary,
    Survey,
    Values,
)
from calibdask.errors import ConfigError, NotEnoughData
from calibdask.io.asymmetry import Asymmetries, create_asymmetries
from calibdask.io.dl2 import Needs, TelescopeEvents

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from calibdask.config import Campaign, Configuration

__all__ = ["EnergyAsymmetryEstimation", "ImageAsymmetryEstimation"]


@dataclass(frozen=True)
class _AsymmetryEstimation(FromDl2[TelescopeEvents, Values, Mapping[Cell, Values]]):
    """Asymmetry of every pair of telescopes in every event, one file per DL2 file."""

    options: CalculateEnergyAsymmetry | CalculateImageAsymmetry

    version: ClassVar[int] = 3
    kept_bytes: ClassVar[int] = 66
    summary: ClassVar[type[Summary]] = PairSummary
    writes_directory: ClassVar[bool] = True

    @property
    def further(self) -> Mapping[str, str]:
        """Columns that are kept besides the values, by the name of the kept rows."""
        raise NotImplementedError

    @property
    def needs(self) -> Needs:
        """The columns to read."""
        return self.needs_besides(*self.further.values())

    def planned(self, surveys: Sequence[Survey]) -> Self:
        """Unite the layouts; refuse inputs of the same name, as outputs are named like inputs."""
        paths: dict[str, str] = {}
        for path in (survey.source.path for survey in surveys):
            name = _file_name_of(path)
            if paths.setdefault(name, path) != path:
                raise ConfigError(
                    f"{paths[name]} and {path} would both be written to {name}: rename one, or"
                    " calibrate them into different directories"
                )
        return super().planned(surveys)

    def read(self, shard: Shard) -> TelescopeEvents:
        """Read telescope events."""
        return self.read_events(shard)

    def reduce(self, shard: Shard, data: TelescopeEvents) -> Reduced:
        """Pair the telescopes of each event; keep the rows, summarise the pairs."""
        del shard
        pairs = select_pairs(data, self.options, layout_of_file(data.layout), self.of_events(data))
        one, two = pairs.row_1, pairs.row_2
        columns = {"x": self.options.value_column, **self.further}
        rows: dict[str, NDArray[Any]] = {
            "obs_id": data.obs_id[one],
            "event_id": data.event_id[one],
            "tel_id_1": data.tel_id[one],
            "tel_id_2": data.tel_id[two],
            "limit": pairs.limit,
        }
        for name, column in columns.items():
            rows[f"{name}_1"] = data.columns[column][one]
            rows[f"{name}_2"] = data.columns[column][two]
        types = type_of(self.telescopes, data.tel_id[one])
        summary = summarise_pairs(
            PairEvents(
                data.event[one],
                types,
                rows["tel_id_1"],
                rows["tel_id_2"],
                rows["x_1"],
                rows["x_2"],
            )
        )
        keys = event_keys(data.event[one], data.obs_id[one], data.event_id[one])
        flow = {**pairs.cut_flow, "events with a pair": len(keys)}
        return Reduced({ALL: summary}, flow, rows, keys, pairs.warnings)

    def fit(self, stage: int, cell: Cell, total: PairSummary, given: Values | None) -> Values:
        """Count the events of each pair: there is nothing to fit."""
        del stage, cell, given
        n = total.difference.n
        if not n.sum():
            raise NotEnoughData("no pair of telescopes has a selected event in common")
        return Values({"pairs": total.pairs, "n_events": n, "tel_type": total.tel_type})

    def outputs(self, result: Mapping[Cell, Values]) -> Sequence[Output]:
        """Return one file for each input."""
        del result
        return [Files(_file_name, self.write_file)]

    def write_file(self, path: Path, shards: Sequence[Shard], parts: Iterable[Rows]) -> None:
        """Write the event-wise asymmetries of one DL2 file."""
        del shards
        options = self.options
        geometry = options.geometry_reconstructor if "impact" in self.further else None
        path.unlink(missing_ok=True)  # what an interrupted try left
        longest = max((len(name.encode()) for name in self.telescopes.tel_type), default=0)
        with create_asymmetries(
            path,
            options.label,
            options.value_column,
            geometry,
            type_length=longest,
            obs_ids=self.obs_ids,
        ) as writer:
            for rows in parts:
                x_1, x_2 = rows["x_1"], rows["x_2"]
                further: dict[str, NDArray[np.float64]] = {}
                if "sigma_1" in rows:
                    s_1, s_2 = rows["sigma_1"], rows["sigma_2"]
                    further |= {
                        "uncertainty_1": s_1,
                        "uncertainty_2": s_2,
                        "asymmetry_uncertainty": asymmetry_uncertainty(x_1, x_2, s_1, s_2),
                    }
                if "impact_1" in rows:
                    further |= {
                        "impact_1_m": rows["impact_1"],
                        "impact_2_m": rows["impact_2"],
                        "limit": rows["limit"],
                    }
                writer.append(
                    Asymmetries(
                        obs_id=rows["obs_id"],
                        event_id=rows["event_id"],
                        tel_type=type_of(self.telescopes, rows["tel_id_1"]),
                        tel_id_1=rows["tel_id_1"],
                        tel_id_2=rows["tel_id_2"],
                        value_1=x_1,
                        value_2=x_2,
                        asymmetry=asymmetry(x_1, x_2),
                        **further,
                    )
                )


def _file_name_of(path: str) -> str:
    return Path(path).stem + ".h5"


def _file_name(shard: Shard) -> str:
    return _file_name_of(shard.inputs[0].path)


@dataclass(frozen=True)
class EnergyAsymmetryEstimation(_AsymmetryEstimation):
    """Energy asymmetry of every pair of telescopes in every event."""

    options: CalculateEnergyAsymmetry

    name: ClassVar[str] = "energy-asymmetry-estimation"
    sections: ClassVar = {"CalculateEnergyAsymmetry": CalculateEnergyAsymmetry, **SELECTION}
    further_sections: ClassVar = {**FURTHER, **OLD_NAME}

    @classmethod
    def configured(cls, document: Configuration, campaign: Campaign) -> Self:
        """Make the calibration from its sections."""
        notes: list[str] = []
        return cls(energy_section(document, notes), campaign.shard_bytes, tuple(notes))

    @property
    def further(self) -> Mapping[str, str]:
        """Keep the uncertainties."""
        return {"sigma": self.options.uncertainty_column}


@dataclass(frozen=True)
class ImageAsymmetryEstimation(_AsymmetryEstimation):
    """Asymmetry of image sizes of every pair of telescopes in every event."""

    options: CalculateImageAsymmetry

    name: ClassVar[str] = "image-asymmetry-estimation"
    sections: ClassVar = {"CalculateImageAsymmetry": CalculateImageAsymmetry, **SELECTION}
    further_sections: ClassVar = FURTHER

    @classmethod
    def configured(cls, document: Configuration, campaign: Campaign) -> Self:
        """Make the calibration from its sections."""
        notes: list[str] = []
        return cls(image_section(document, notes), campaign.shard_bytes, tuple(notes))

    @property
    def further(self) -> Mapping[str, str]:
        """Keep the impact distances: the light falls with them."""
        return {"impact": self.options.impact_column}

"""Metadata of products: what made them, in the form of each field's standard."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from calibdask.version import __version__

__all__ = ["Activity", "CtaReference", "Description", "Metadata"]


@dataclass(frozen=True)
class Activity:
    """The run that makes a product.

    Attributes
    ----------
    job : str
        Name of the calibration.
    activity_id, product_id : str
        Unique identifiers of the run and of the product.
    started, stopped : str
        Times in UTC, ISO 8601.
    contact : str
        Name of the user who ran it.
    """

    job: str
    activity_id: str
    product_id: str
    started: str
    stopped: str
    contact: str


type Metadata = Callable[[Activity], Mapping[str, str]]
"""Makes the attributes at the root of a product from the run that made it."""


@dataclass(frozen=True)
class Description:
    """Metadata of products in whose field there is no standard for them.

    Attributes
    ----------
    text : str
        What the product is.
    more : mapping of str to str
        Further attributes, such as the camera.
    """

    text: str
    more: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, activity: Activity) -> dict[str, str]:
        """Return the attributes of a product."""
        return {
            "PRODUCT DESCRIPTION": self.text,
            "PRODUCT ID": activity.product_id,
            "PRODUCT CREATION TIME": activity.stopped,
            "ACTIVITY NAME": f"calibdask {activity.job}",
            "ACTIVITY ID": activity.activity_id,
            "ACTIVITY START TIME": activity.started,
            "ACTIVITY STOP TIME": activity.stopped,
            "ACTIVITY SOFTWARE NAME": "calibdask",
            "ACTIVITY SOFTWARE VERSION": __version__,
            "CONTACT NAME": activity.contact,
            **self.more,
        }


@dataclass(frozen=True)
class CtaReference:
    """CTA reference metadata, for products about telescopes of the observatory.

    Names and values follow the CTAO top-level data model (version 1) as ctapipe writes it.

    Attributes
    ----------
    description : str
        What the product is.
    data_level : str
        Level of the data that it was made from, such as DL2.
    process_type : str
        Observation or Simulation.
    """

    description: str
    data_level: str
    process_type: str

    def __call__(self, activity: Activity) -> dict[str, str]:
        """Return the attributes of a product."""
        return {
            "CTA REFERENCE VERSION": "1",
            "CTA PRODUCT DESCRIPTION": self.description,
            "CTA PRODUCT CREATION TIME": activity.stopped,
            "CTA PRODUCT ID": activity.product_id,
            "CTA PRODUCT DATA CATEGORY": "Sim" if self.process_type == "Simulation" else "B",
            "CTA PRODUCT DATA LEVELS": self.data_level,
            "CTA PRODUCT DATA ASSOCIATION": "Subarray",
            "CTA PRODUCT DATA MODEL NAME": "ASWG",
            "CTA PRODUCT DATA MODEL VERSION": "v7.6.0",
            "CTA PRODUCT DATA MODEL URL": "",
            "CTA PRODUCT FORMAT": "hdf5",
            "CTA PROCESS TYPE": self.process_type,
            "CTA PROCESS SUBTYPE": "",
            "CTA PROCESS ID": "0",
            "CTA ACTIVITY NAME": f"calibdask {activity.job}",
            "CTA ACTIVITY TYPE": "software",
            "CTA ACTIVITY ID": activity.activity_id,
            "CTA ACTIVITY START TIME": activity.started,
            "CTA ACTIVITY STOP TIME": activity.stopped,
            "CTA ACTIVITY SOFTWARE NAME": "calibdask",
            "CTA ACTIVITY SOFTWARE VERSION": __version__,
            "CTA INSTRUMENT SITE": "Other",
            "CTA INSTRUMENT CLASS": "Subarray",
            "CTA INSTRUMENT TYPE": "unspecified",
            "CTA INSTRUMENT SUBTYPE": "unspecified",
            "CTA INSTRUMENT VERSION": "unspecified",
            "CTA INSTRUMENT ID": "unspecified",
            "CTA CONTACT NAME": activity.contact,
            "CTA CONTACT ORGANIZATION": "unknown",
            "CTA CONTACT EMAIL": "unknown",
        }

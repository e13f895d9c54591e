"""The reports of bias and read noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calibdask.report.attention import attention_section
from calibdask.report.blocks import Paragraph, ReportSection
from calibdask.sensor.report import draw_sensor_map, map_notices, settings_table
from calibdask.sensor.tables import BIAS, READ_NOISE

if TYPE_CHECKING:
    from calibdask.sensor.report import Row, Tables

__all__ = ["bias_sections"]


def bias_sections(result: Row, tables: Tables) -> list[ReportSection]:
    """Describe bias and read noise."""
    maps = result["overviews"]
    # The lowest and the highest speed: what lies between looks alike.
    ends = {one.name for one in (result["settings"][0], result["settings"][-1])}
    labels = {"bias": "bias (DN)", "readnoise": "read noise (DN)"}
    shown = [
        (name, labels[last])
        for name, (_, group, last) in ((name, name.split("/")) for name in maps)
        if last in labels and group in ends
    ]
    return [
        attention_section(map_notices(maps, result["rows"], "bias", "readnoise")),
        ReportSection(
            "Bias and read noise",
            [
                Paragraph(
                    "The bias of a pixel is the mean of its frames, its read noise their standard"
                    " deviation (divisor n - 1) less that of rounding, 1/12 DN². Each ISO speed has"
                    " its own."
                ),
                settings_table(
                    BIAS if BIAS.path in tables else READ_NOISE,
                    tables,
                    "n_frames bias_dn bias_dn_error fixed_pattern_dn readnoise_dn"
                    " readnoise_dn_error n_flagged",
                    "By ISO speed; means over pixels without a flag.",
                ),
            ],
        ),
        ReportSection("Maps", [draw_sensor_map(maps[name], name, label) for name, label in shown]),
    ]

"""Write the batch scripts in ``slurm/``; a test compares them with what is there."""

from __future__ import annotations

from pathlib import Path

from calibdask.engine.sites.batch import BatchJob

DIRECTORY = Path(__file__).parents[2] / "slurm"
WORDS = (
    *("calibdask", "inter-calibration", "-c", "configs/inter_calibration.yaml"),
    *("-i", "demo/dl2", "-o", "inter_calibration.h5"),
)
GAIN = (
    *("calibdask", "gain", "-c", "configs/gain.yaml", "-i", "camera", "-o", "gain"),
    *("--set", "Gain.bias=bias"),
)
MUONS = (
    *("calibdask", "calculate-throughput-muon", "-c", "configs/calculate_throughput_muon.yaml"),
    *("-i", "muons", "-o", "throughput.h5"),
)


def examples() -> dict[str, str]:
    """Return the scripts by file name."""
    setup = ("source .venv/bin/activate",)
    inside = BatchJob(
        (*WORDS, "--cluster", "allocation"), 2, 4, "02:00:00", "2G", requeue=True, setup=setup
    )
    head = BatchJob(
        (*WORDS, "--cluster", "slurm", "--workers", "2:8"), 1, 1, "1-00:00:00", "2G", setup=setup
    )
    gain = BatchJob(
        (*GAIN, "--cluster", "allocation"), 2, 4, "01:00:00", "3G", requeue=True, setup=setup
    )
    muons = BatchJob(
        (*MUONS, "--cluster", "allocation"), 2, 8, "04:00:00", "2G", requeue=True, setup=setup
    )
    return {
        "gain.sbatch": gain.script(),
        "inter_calibration.sbatch": inside.script(),
        "inter_calibration_head.sbatch": head.script(),
        "calculate_throughput_muon.sbatch": muons.script(),
    }


if __name__ == "__main__":
    for name, text in examples().items():
        (DIRECTORY / name).write_text(text, encoding="utf-8")

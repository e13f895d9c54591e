"""Distributed, resumable, bit-reproducible calibration of telescopes and cameras."""

__version__ = "0.1.0"

"""Calibration of an array of telescopes against each other."""

"""Sensor calibration from stacks of raw frames: cameras as in SPECTACLE and EMVA 1288."""

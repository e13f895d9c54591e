"""What every calibration runs on: plan, map, merge, fit, store, resume."""

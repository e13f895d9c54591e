"""Muon rings: optical throughput and optical point spread function of telescopes."""

"""Statistics that merge: what every summary is built from."""

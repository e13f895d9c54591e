"""Networks of telescope pairs: from pair events to one value for each telescope."""

"""Files in and out, without ctapipe, Dask or Astropy at import."""

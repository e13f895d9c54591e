"""Files in and out, without ctapipe, Dask or Astropy at import."""

import os

# HDF5 takes a file for damaged where the file system has no locks (NFS without lockd, DVS). It asks
# once, when it is loaded; `calibdask.io.hdf5` locks files as HDF5 would, where that is possible.
os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")

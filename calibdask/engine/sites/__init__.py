"""Where the tasks of a campaign run: one module for each kind of cluster."""

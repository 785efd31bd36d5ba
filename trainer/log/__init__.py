"""Where a run's numbers go besides its folder: trackers, and the series of layers in them."""

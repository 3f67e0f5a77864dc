"""What test modules share: helpers, fixtures, contracts, fuzz targets and readers of recorded data."""

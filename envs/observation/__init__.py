"""Windows to features, deadlines and the observation that policies act on."""

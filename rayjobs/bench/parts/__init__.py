"""What benches share: bars, ratios, blocks, sites and stopwatches. `deepsched bench` does not list these modules."""

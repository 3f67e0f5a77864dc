"""The simulation study: rules judged on scenarios in batches, optimal splits, and Park's load balancing task."""

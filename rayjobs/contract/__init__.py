"""`deepsched contract`: what every proxy should do, measured before test servers. What is judged lives in `checks`."""

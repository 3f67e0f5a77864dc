"""The stand-in for DeathStarBench's social network: an HTTP service with emulated capacity and a database."""

"""Scenarios: what load and servers do over time, from the catalogue, from files and from calibrations."""

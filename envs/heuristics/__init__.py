"""Policies that are not learned: heuristics on weights and controllers of service times."""

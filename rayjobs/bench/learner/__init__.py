"""Bench `learner`: what a step of learning costs, and what several learners reach with the same budget."""

from __future__ import annotations

from rayjobs.bench.learner import learners, pace

PARTS = {"pace": pace.measure, "learners": learners.measure}
"""`learners` takes about an hour, goes on from where it was interrupted, and is measured when it is asked for alone."""
measure = pace.measure

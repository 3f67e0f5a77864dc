"""Estimators that turn windows into service times and numbers of workers."""

"""The tests, in the same rooms as the packages; what several of them share is in `tests.support`."""

"""The open-loop load generator: plans, the C engine and its summaries; wrk2 as an alternative.

Servers are not here.
"""

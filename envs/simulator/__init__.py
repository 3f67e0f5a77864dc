"""The queue simulator: batches of simulated testbeds in compiled event loops.

Scenarios and policies are defined elsewhere.
"""

"""Values and protocols that all layers share: topology, controls, scripts, windows, the testbed protocol.

Nothing here does I/O.
"""

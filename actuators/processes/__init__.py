"""Child processes: starting, guarding and ending them, free ports, priorities and CPU times.

What they run is not defined here.
"""

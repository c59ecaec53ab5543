"""Stimuli and recordings with a known answer."""

NOTE = "SIMULATED.txt"
"""Name of a file in raw folders that are written here: it says that nobody was recorded."""

"""Stimuli and recordings with a known answer."""

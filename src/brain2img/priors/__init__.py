"""Decoded embedding -> embedding on the manifold of its space."""

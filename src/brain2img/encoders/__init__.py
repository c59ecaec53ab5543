"""Trunks shared by all subjects: (B, F, T) -> (B, L, H)."""

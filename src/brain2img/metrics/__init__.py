"""Decoded and true -> one value per row and metric."""

"""The prepared study, its splits, normalisation and batches."""

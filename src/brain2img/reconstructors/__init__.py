"""Embeddings -> images."""

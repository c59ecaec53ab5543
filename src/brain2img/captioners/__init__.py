"""Embeddings -> text."""

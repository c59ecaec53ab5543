"""Hidden states (B, L, H) -> embeddings of one space."""

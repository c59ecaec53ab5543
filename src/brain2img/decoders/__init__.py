"""Brain signals -> embeddings: deep and linear."""

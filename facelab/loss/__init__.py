"""Which objective? (B,D) embeddings and (B,) labels → a scalar. Plain torch."""

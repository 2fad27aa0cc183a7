"""Which network? (B,3,112,112) in [−1,1] → (B,D) embeddings. Plain torch."""

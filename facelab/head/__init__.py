"""What on top of the backbone? (B,D) → (B,D). Plain torch."""

"""Who teaches it? Plain torch."""

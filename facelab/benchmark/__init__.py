"""How good is it? Embeddings and pairs → scores, metrics, protocol stamps. numpy and torch."""

"""From photographs to a training set: detect, align, pack."""

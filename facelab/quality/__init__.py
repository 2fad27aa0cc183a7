"""What does the length of an embedding know of its image? `python -m facelab.quality checkpoint=…`."""

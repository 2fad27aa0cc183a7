"""How is it trained? The room that brings the others together, with Lightning."""

from facelab.training.torchmetrics_later import install

install()

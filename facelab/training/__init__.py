"""How is it trained? The room that brings the others together, with Lightning."""

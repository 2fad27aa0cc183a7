"""How long does a photograph take?"""

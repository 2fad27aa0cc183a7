"""How does a model leave the house?"""

"""What does it look like to somebody else?"""

"""Which faces? Files → uint8 batches (B,H,W,3), RGB, in an order decided by plan.py alone."""

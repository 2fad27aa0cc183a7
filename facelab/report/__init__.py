"""What did we learn? Pictures and tables, made from a run's record alone."""

"""Comparing runs: tables with error bars, paired tests, costs and pictures, out of the records of runs alone."""

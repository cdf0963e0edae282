"""Scaling laws: what a ladder of runs says about larger ones."""

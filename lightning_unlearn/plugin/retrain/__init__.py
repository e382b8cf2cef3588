"""Exact retraining: the same code again, on the retained samples alone."""

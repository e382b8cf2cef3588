"""Rows that reach a head: what they are, and how a batch gives them."""

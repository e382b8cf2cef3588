"""Frozen features that follow from public numbers alone: a seed and options."""

"""Trainings that follow each other, each on more samples: what each ended with."""

"""The training data, the forget set, and exact batches of both."""

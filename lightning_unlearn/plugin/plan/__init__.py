"""What a request would do, worked out before anything changes."""

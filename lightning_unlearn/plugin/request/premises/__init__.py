"""What a claim takes as public, as far as a request can look at it."""

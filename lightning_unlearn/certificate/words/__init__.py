"""What a certificate says in words, and how that follows from its numbers."""

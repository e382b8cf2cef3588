"""What a training leaves behind that a later request needs to know."""

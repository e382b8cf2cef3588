"""Files of a request: checkpoint, journal, prepared and solve state."""

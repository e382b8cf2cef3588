"""The weights as one vector, and the state and processes every pass runs in."""

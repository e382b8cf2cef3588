"""One request from what is request to what is released."""

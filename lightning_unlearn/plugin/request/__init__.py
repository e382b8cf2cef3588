"""One request, from what is asked for to what is released."""

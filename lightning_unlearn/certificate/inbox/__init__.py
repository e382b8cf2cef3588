"""Requests as people have them: a table of them, what is due, and what was done."""

"""Requests that change no weight."""

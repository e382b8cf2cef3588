"""A private training in the user's own Trainer, and what a request needs of it."""

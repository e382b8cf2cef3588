"""Newton's method on a convex head, to its optimum."""

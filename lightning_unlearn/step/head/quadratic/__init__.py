"""A head whose loss is a square: its optimum from sums of products of its rows."""

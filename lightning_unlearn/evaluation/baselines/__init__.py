"""Other methods that forget, what their papers prove, and a table beside ours."""

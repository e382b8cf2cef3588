"""How a frozen model is called, where it is read, and how rows are made of that."""

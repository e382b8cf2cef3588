"""Pure numbers: what is proved, from which constants, and how sure it is."""

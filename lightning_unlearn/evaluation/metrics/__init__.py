"""Numbers of an unlearned model against a retrained one."""

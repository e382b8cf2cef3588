"""What every room may use: validation, strict JSON, files, text."""

"""What a user calls: unlearn, preflight, prepare, audits."""

"""Membership inference against an unlearned model."""

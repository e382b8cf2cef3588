"""Accountants: numbers that need more than one formula. No data, no weights."""

"""Rows: read from files, checked, fingerprinted, and found again from a model version."""

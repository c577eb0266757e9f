"""Clips with truth, and how well they are reconstructed."""

"""Scores of a registration, and the verdict on them."""

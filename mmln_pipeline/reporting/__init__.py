"""Figures and pages that let a person judge a registration by eye."""

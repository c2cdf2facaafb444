"""The study: every method of the paper on one protocol, its tables and figures."""

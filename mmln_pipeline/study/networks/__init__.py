"""Networks of the learned peers, written from their papers."""

"""The registration of one pair, from checked images to transforms and scores."""

"""What the BIDS App writes of each image: scans, templates, file names, sidecars."""

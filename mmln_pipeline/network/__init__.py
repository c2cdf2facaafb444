"""The MMLN network and what it learns from: levels, branches, losses, tissue maps."""

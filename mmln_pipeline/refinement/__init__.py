"""Refinement of the network's answer for one pair, by descent on its velocity."""

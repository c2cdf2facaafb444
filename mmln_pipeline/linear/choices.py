"""What can be chosen of the linear steps; nothing heavy is imported."""

AFFINES = ("affine", "rigid")
"""Freedom of the linear start: twelve parameters, or six."""
REFERENCES = ("first-lex", "unbiased")
"""Space of the average of several images: the first one's, or the middle of all."""
STRIPPERS = ("synthstrip", "atlas")
"""What strips a raw head: FreeSurfer's SynthStrip, or the embedded template."""
SKULL_STRIP = ("auto", "skip", *STRIPPERS)
"""Strip the images that are not stripped already, trust that they are, or strip all with one of these."""

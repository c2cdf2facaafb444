"""The BIDS App: command line, dataset queries, checks and the run itself.

Nipype's version check (a network access) is switched off before any module here imports Nipype.
"""

import os

os.environ.setdefault("NIPYPE_NO_ET", "1")

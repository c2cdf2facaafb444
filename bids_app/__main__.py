"""``python -m mmln_pipeline.bids_app``: the same as ``mmln-bids``."""

import sys

from mmln_pipeline.bids_app.run import main

if __name__ == "__main__":
    sys.exit(main())

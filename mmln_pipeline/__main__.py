"""Run the command line as ``python -m mmln_pipeline``."""

import sys

from mmln_pipeline.cli import main

if __name__ == "__main__":
    sys.exit(main())

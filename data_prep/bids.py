"""EEG or MEG of a BIDS dataset -> a prepared study; see docs/studies/bids.md.

The same as ``brain2img prepare study=bids``.
"""

import sys

from brain2img.command_line import launch

if __name__ == "__main__":
    launch("prepare", ["study=bids", *sys.argv[1:]])

"""Single-trial betas of fMRI in a BIDS derivative -> a prepared study; see docs/studies/bids_betas.md.

The same as ``brain2img prepare study=bids_betas``.
"""

import sys

from brain2img.command_line import launch

if __name__ == "__main__":
    launch("prepare", ["study=bids_betas", *sys.argv[1:]])

"""THINGS-EEG2, raw or preprocessed -> a prepared study; see docs/studies/things_eeg2.md.

The same as ``brain2img prepare study=things_eeg2``.
"""

import sys

from brain2img.command_line import launch

if __name__ == "__main__":
    launch("prepare", ["study=things_eeg2", *sys.argv[1:]])

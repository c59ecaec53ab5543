"""fMRI of handwritten 6s and 9s -> a prepared study; see docs/studies/digit69.md.

The same as ``brain2img prepare study=digit69``.
"""

import sys

from brain2img.command_line import launch

if __name__ == "__main__":
    launch("prepare", ["study=digit69", *sys.argv[1:]])

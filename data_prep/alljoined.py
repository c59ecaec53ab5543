"""Alljoined-1.6M -> a prepared study; see docs/studies/alljoined.md.

The same as ``brain2img prepare study=alljoined``.
"""

import sys

from brain2img.command_line import launch

if __name__ == "__main__":
    launch("prepare", ["study=alljoined", *sys.argv[1:]])

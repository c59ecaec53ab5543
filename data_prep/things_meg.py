"""THINGS-MEG -> a prepared study; see docs/studies/things_meg.md.

The same as ``brain2img prepare study=things_meg``.
"""

import sys

from brain2img.command_line import launch

if __name__ == "__main__":
    launch("prepare", ["study=things_meg", *sys.argv[1:]])

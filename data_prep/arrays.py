"""A study of your own, arrays and tables -> a prepared study; see docs/own_data.md.

The same as ``brain2img prepare study=arrays``.
"""

import sys

from brain2img.command_line import launch

if __name__ == "__main__":
    launch("prepare", ["study=arrays", *sys.argv[1:]])

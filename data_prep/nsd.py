"""The Natural Scenes Dataset -> a prepared study; see docs/studies/nsd.md.

The same as ``brain2img prepare study=nsd``.
"""

import sys

from brain2img.command_line import launch

if __name__ == "__main__":
    launch("prepare", ["study=nsd", *sys.argv[1:]])

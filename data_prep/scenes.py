"""The simulated study -> a prepared study; see docs/studies/scenes.md.

The same as ``brain2img prepare study=scenes_fmri``.
"""

import sys

from brain2img.command_line import launch

if __name__ == "__main__":
    launch("prepare", ["study=scenes_fmri", *sys.argv[1:]])

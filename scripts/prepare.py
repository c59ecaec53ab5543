"""Raw recordings and stimuli -> a prepared study under outputs/prepared.

The same as ``brain2img prepare``; --help shows examples and what there is to choose from.
"""

from brain2img.command_line import launch

if __name__ == "__main__":
    launch("prepare")

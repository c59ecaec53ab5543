"""Stimuli -> embeddings of the chosen spaces under outputs/cache.

The same as ``brain2img embed``; --help shows examples and what there is to choose from.
"""

from brain2img.command_line import launch

if __name__ == "__main__":
    launch("embed")

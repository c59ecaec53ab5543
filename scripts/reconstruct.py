"""Predictions -> images under outputs/reconstructions.

The same as ``brain2img reconstruct``; --help shows examples and what there is to choose from.
"""

from brain2img.command_line import launch

if __name__ == "__main__":
    launch("reconstruct")

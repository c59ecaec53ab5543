"""Prepared study + embeddings -> a trained decoder under outputs/train; goes on where it was interrupted.

The same as ``brain2img train``; --help shows examples and what there is to choose from.
"""

from brain2img.command_line import launch

if __name__ == "__main__":
    launch("train")

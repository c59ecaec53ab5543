"""A trained run -> decoded embeddings, with the control conditions, under outputs/predictions.

The same as ``brain2img predict``; --help shows examples and what there is to choose from.
"""

from brain2img.command_line import launch

if __name__ == "__main__":
    launch("predict")

"""Predictions + a fitted prior -> a sample of the prior for each, which reconstruct and caption then read.

The same as ``brain2img apply_prior``; --help shows examples and what there is to choose from.
"""

from brain2img.command_line import launch

if __name__ == "__main__":
    launch("apply_prior")

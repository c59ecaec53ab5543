"""Predictions of stimuli a decoder has not seen -> a prior under outputs/priors, which later stages then use.

The same as ``brain2img fit_prior``; --help shows examples and what there is to choose from.
"""

from brain2img.command_line import launch

if __name__ == "__main__":
    launch("fit_prior")

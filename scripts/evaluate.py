"""Predictions and reconstructions -> scores, summary.json, grid.png and report.html under outputs/scores.

The same as ``brain2img evaluate``; --help shows examples and what there is to choose from.
"""

from brain2img.command_line import launch

if __name__ == "__main__":
    launch("evaluate")

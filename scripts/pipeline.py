"""All stages of an experiment that are not finished, then the scores and the report.

The same as ``brain2img pipeline``; --help shows examples and what there is to choose from.
"""

from brain2img.command_line import launch

if __name__ == "__main__":
    launch("pipeline")

"""Decoding in a sliding window over the epoch (EEG, MEG), under outputs/time_course.

python scripts/time_course.py run=outputs/train/demo/eeg_ridge
python scripts/time_course.py experiment=demo/eeg_ridge time_course.width=0.04 time_course.step=0.02
"""

import hydra
from omegaconf import DictConfig

from brain2img.command_line.arguments import check_command_line


@hydra.main(version_base="1.3", config_path="../configs", config_name="time_course")
def main(cfg: DictConfig) -> None:
    from brain2img.analyses.time_course import time_course
    from brain2img.command_line.run import run

    run(time_course, cfg)


if __name__ == "__main__":
    check_command_line()
    main()

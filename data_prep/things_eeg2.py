"""THINGS-EEG2, raw or preprocessed -> a prepared study; see things_eeg2.md.

python data_prep/things_eeg2.py raw=<folder>
python data_prep/things_eeg2.py raw=<folder> study.form=preprocessed study.subjects=[1,2] study.jobs=2
"""

import sys

import hydra
from omegaconf import DictConfig

from brain2img.stages.command_line import check_command_line


@hydra.main(version_base="1.3", config_path="../configs", config_name="prepare")
def main(cfg: DictConfig) -> None:
    from brain2img.stages.prepare import prepare
    from brain2img.stages.run import run

    run(prepare, cfg)


if __name__ == "__main__":
    check_command_line()
    if not any(argument.startswith("study=") for argument in sys.argv[1:]):
        sys.argv.insert(1, "study=things_eeg2")
    main()

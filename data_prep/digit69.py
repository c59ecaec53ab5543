"""fMRI of handwritten 6s and 9s -> a prepared study; see digit69.md.

python data_prep/digit69.py raw=<digit69_28x28.mat>
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
        sys.argv.insert(1, "study=digit69")
    main()

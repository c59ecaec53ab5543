"""Alljoined-1.6M -> a prepared study; see alljoined.md.

python data_prep/alljoined.py raw=<Alljoined-1.6M>
python data_prep/alljoined.py raw=<Alljoined-1.6M> study.form=preprocessed "study.subjects=[1,2]"
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
        sys.argv.insert(1, "study=alljoined")
    main()

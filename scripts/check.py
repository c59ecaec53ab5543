"""What is understood of a study, what is missing and what looks wrong, before anything long is run.

python scripts/check.py study=arrays raw=<folder> study.modality=eeg study.units=uV study.sfreq=250 study.tmin=-0.2
python scripts/check.py study=bids raw=<BIDS folder>
It prepares the study, draws figures and prints the command that runs the whole chain; docs/own_data.md.
"""

import hydra
from omegaconf import DictConfig

from brain2img.command_line.arguments import check_command_line


@hydra.main(version_base="1.3", config_path="../configs", config_name="check")
def main(cfg: DictConfig) -> None:
    from brain2img.command_line.run import run
    from brain2img.stages.check import check

    run(check, cfg, collective=True)


if __name__ == "__main__":
    check_command_line()
    main()

"""An example of a study of your own in the files that study=arrays reads: 12 pictures shown 10 times, simulated.

python data_prep/new_study.py raw=<new folder>
python data_prep/new_study.py raw=<new folder> modality=fmri n_stimuli=20

Replace its files by yours; README.txt in it explains each. It says how to check it.
"""

import hydra
from omegaconf import DictConfig

from brain2img.command_line.arguments import check_command_line


@hydra.main(version_base="1.3", config_path="../configs", config_name="new_study")
def main(cfg: DictConfig) -> None:
    from brain2img.command_line.run import run
    from brain2img.stages.new_study import new_study

    run(new_study, cfg, collective=True)


if __name__ == "__main__":
    check_command_line()
    main()

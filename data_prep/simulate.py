"""A small simulated study in the folders and files of a real one, to try the chain before the data are there.

python data_prep/simulate.py study=things_eeg2
python data_prep/simulate.py study=nsd study.form=nifti raw=<folder> simulate.source.snr=0.2

It says how to run the pipeline on what it wrote.
"""

import hydra
from omegaconf import DictConfig

from brain2img.command_line.arguments import check_command_line


@hydra.main(version_base="1.3", config_path="../configs", config_name="simulate")
def main(cfg: DictConfig) -> None:
    from brain2img.command_line.run import run
    from brain2img.stages.simulate import simulate

    run(simulate, cfg, collective=True)


if __name__ == "__main__":
    check_command_line()
    main()

"""Prepared study + embeddings -> a trained decoder under outputs/train; goes on where it was interrupted.

python scripts/train.py experiment=demo/fmri_mindbridge
python scripts/train.py experiment=demo/eeg_atm name=long trainer.max_epochs=100
python scripts/train.py experiment=demo/fmri_ridge data.subjects=[sub-01]
"""

import hydra
from omegaconf import DictConfig

from brain2img.command_line.arguments import check_command_line


@hydra.main(version_base="1.3", config_path="../configs", config_name="train")
def main(cfg: DictConfig) -> None:
    from brain2img.command_line.run import run
    from brain2img.stages.train import train

    run(train, cfg)


if __name__ == "__main__":
    check_command_line()
    main()

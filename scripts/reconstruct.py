"""Predictions -> images under outputs/reconstructions.

python scripts/reconstruct.py run=outputs/train/demo/fmri_mindbridge
python scripts/reconstruct.py run=outputs/train/demo/eeg_atm reconstructor=[nearest_training_image]
"""

import hydra
from omegaconf import DictConfig

from brain2img.command_line.arguments import check_command_line


@hydra.main(version_base="1.3", config_path="../configs", config_name="reconstruct")
def main(cfg: DictConfig) -> None:
    from brain2img.command_line.run import run
    from brain2img.stages.reconstruct import reconstruct

    run(reconstruct, cfg)


if __name__ == "__main__":
    check_command_line()
    main()

"""Scenes -> the small backbones of the simulated study, under outputs/backbones; goes on where it was interrupted.

python scripts/train_small_backbones.py
python scripts/train_small_backbones.py parts=[clip] clip.steps=3000 name=longer
python scripts/train_small_backbones.py install=true     # copy the weights into the package when done
"""

import hydra
from omegaconf import DictConfig

from brain2img.command_line.arguments import check_command_line


@hydra.main(version_base="1.3", config_path="../configs", config_name="train_small_backbones")
def main(cfg: DictConfig) -> None:
    from brain2img.command_line.run import run
    from brain2img.small_backbones.train import train_small_backbones

    run(train_small_backbones, cfg, collective=True)


if __name__ == "__main__":
    check_command_line()
    main()

"""Predictions -> captions under outputs/captions.

python scripts/caption.py run=outputs/train/demo/fmri_mindbridge captioner=[prefix_small]
python scripts/caption.py run=outputs/train/demo/eeg_atm captioner=[prefix_small,nearest_caption]
"""

import hydra
from omegaconf import DictConfig

from brain2img.command_line.arguments import check_command_line


@hydra.main(version_base="1.3", config_path="../configs", config_name="caption")
def main(cfg: DictConfig) -> None:
    from brain2img.command_line.run import run
    from brain2img.stages.caption import caption

    run(caption, cfg)


if __name__ == "__main__":
    check_command_line()
    main()

"""A trained MindBridge run -> each subject's voxels for what the others saw, compared with the real ones.

python scripts/synthesise.py run=outputs/train/scenes/mindbridge
python scripts/synthesise.py run=outputs/train/scenes/mindbridge predict_split=val name=check
"""

import hydra
from omegaconf import DictConfig

from brain2img.command_line.arguments import check_command_line


@hydra.main(version_base="1.3", config_path="../configs", config_name="synthesise")
def main(cfg: DictConfig) -> None:
    from brain2img.analyses.synthesise import synthesise
    from brain2img.command_line.run import run

    run(synthesise, cfg)


if __name__ == "__main__":
    check_command_line()
    main()

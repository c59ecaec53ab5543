"""Voxel-importance maps (NIfTI, slices, sums by region) of a trained decoder, under outputs/importance.

python scripts/importance.py run=outputs/train/demo/fmri_ridge
python scripts/importance.py run=outputs/train/scenes/vit3d importance.method=occlusion importance.block=4
"""

import hydra
from omegaconf import DictConfig

from brain2img.command_line.arguments import check_command_line


@hydra.main(version_base="1.3", config_path="../configs", config_name="importance")
def main(cfg: DictConfig) -> None:
    from brain2img.analyses.importance import importance
    from brain2img.command_line.run import run

    run(importance, cfg)


if __name__ == "__main__":
    check_command_line()
    main()

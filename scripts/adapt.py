"""A trained run + a new subject -> a run for this subject under outputs/train; goes on where it was interrupted.

python scripts/adapt.py run=outputs/train/seven subject=sub-08
python scripts/adapt.py run=outputs/train/seven subject=sub-08 trials=200 steps=300 trainer.lr=1e-3
python scripts/adapt.py run=outputs/train/seven subject=sub-08 trials=1h mode=full source_subjects=[]
python scripts/predict.py run=outputs/train/seven_sub-08_reset_200
"""

import hydra
from omegaconf import DictConfig

from brain2img.command_line.arguments import check_command_line


@hydra.main(version_base="1.3", config_path="../configs", config_name="adapt")
def main(cfg: DictConfig) -> None:
    from brain2img.command_line.run import run
    from brain2img.stages.adapt import adapt

    run(adapt, cfg, collective=True)


if __name__ == "__main__":
    check_command_line()
    main()

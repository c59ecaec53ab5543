"""Accuracy over amounts of a new subject's data, adapted against trained on it alone, under outputs/sweeps.

python scripts/sweep.py run=outputs/train/seven subject=sub-08 trials=[50,100,200,400,800,1600]
python scripts/sweep.py run=outputs/train/seven subject=sub-08 trials=[15min,1h,null] n_draws=3 steps=600
python scripts/sweep.py run=outputs/train/seven subject=sub-08 name=choice predict_split=val dedicated.lr=1e-3
"""

import hydra
from omegaconf import DictConfig

from brain2img.command_line.arguments import check_command_line


@hydra.main(version_base="1.3", config_path="../configs", config_name="sweep")
def main(cfg: DictConfig) -> None:
    from brain2img.analyses.sweep import sweep
    from brain2img.command_line.run import run

    run(sweep, cfg, collective=True)


if __name__ == "__main__":
    check_command_line()
    main()

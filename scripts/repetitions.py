"""Accuracy over the number of averaged repetitions of a test stimulus, under outputs/repetitions.

python scripts/repetitions.py run=outputs/train/demo/eeg_atm
python scripts/repetitions.py experiment=demo/eeg_atm repetition_curve.n_draws=10 repetition_curve.counts=[1,5,20]
"""

import hydra
from omegaconf import DictConfig

from brain2img.command_line.arguments import check_command_line


@hydra.main(version_base="1.3", config_path="../configs", config_name="repetitions")
def main(cfg: DictConfig) -> None:
    from brain2img.analyses.repetitions import repetitions
    from brain2img.command_line.run import run

    run(repetitions, cfg)


if __name__ == "__main__":
    check_command_line()
    main()

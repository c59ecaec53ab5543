"""An experiment without each of its parts, beside a baseline: table, figure and page under outputs/ablations.

python scripts/ablate.py name=recipe
python scripts/ablate.py name=quick ablation.n_seeds=1 trainer.max_epochs=5
"""

import hydra
from omegaconf import DictConfig

from brain2img.command_line.arguments import check_command_line


@hydra.main(version_base="1.3", config_path="../configs", config_name="ablate")
def main(cfg: DictConfig) -> None:
    from brain2img.analyses.ablate import ablate
    from brain2img.command_line.run import run

    run(ablate, cfg, collective=True)


if __name__ == "__main__":
    check_command_line()
    main()

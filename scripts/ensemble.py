"""Mean of the predictions of several runs, as predictions of a name of their own that later stages take as any other.

python scripts/ensemble.py runs=[atm_seed0,atm_seed1,atm_seed2] name=atm_three
python scripts/evaluate.py run=outputs/train/atm_three
"""

import hydra
from omegaconf import DictConfig

from brain2img.command_line.arguments import check_command_line


@hydra.main(version_base="1.3", config_path="../configs", config_name="ensemble")
def main(cfg: DictConfig) -> None:
    from brain2img.analyses.ensemble import ensemble
    from brain2img.command_line.run import run

    run(ensemble, cfg, collective=True)


if __name__ == "__main__":
    check_command_line()
    main()

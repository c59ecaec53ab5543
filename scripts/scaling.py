r"""Accuracy over amounts of training data and a log-linear law of it, by hardware, under outputs/scaling.

python scripts/scaling.py experiment=scenes_eeg/protocols/ridge_in_subject name=trials scaling.amounts=[100,200,400,800]
python scripts/scaling.py experiment=scenes_eeg/protocols/ridge_in_subject name=hardware hardware=eeg scaling.link=logit
python scripts/scaling.py experiment=scenes_eeg/protocols/atm_joint name=subjects scaling.axis=subjects \
    scaling.amounts=[1,2,4] scaling.extrapolate=[10] split.train_trials=400
"""

import hydra
from omegaconf import DictConfig

from brain2img.command_line.arguments import check_command_line


@hydra.main(version_base="1.3", config_path="../configs", config_name="scaling")
def main(cfg: DictConfig) -> None:
    from brain2img.analyses.scaling import scaling
    from brain2img.command_line.run import run

    run(scaling, cfg)


if __name__ == "__main__":
    check_command_line()
    main()

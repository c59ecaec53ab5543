"""Mean test accuracy over the last epochs, as in ATM's old tables; to compare with those alone, not for new results.

The run must have kept these epochs: trainer=atm_last_epochs, or +trainer.keep_last=10. It looks at the test data once
an epoch; results of a model are those of evaluate.py.

python scripts/train.py experiment=published/atm_s_sub08 trainer=atm_last_epochs name=old_table
python scripts/legacy_last_epochs_mean.py run=outputs/train/old_table
python scripts/legacy_last_epochs_mean.py run=outputs/train/old_table last_epochs=5 headline.space=clip
"""

import hydra
from omegaconf import DictConfig

from brain2img.command_line.arguments import check_command_line


@hydra.main(version_base="1.3", config_path="../configs", config_name="legacy_last_epochs_mean")
def main(cfg: DictConfig) -> None:
    from brain2img.analyses.legacy_last_epochs_mean import legacy_last_epochs_mean
    from brain2img.command_line.run import run

    run(legacy_last_epochs_mean, cfg)


if __name__ == "__main__":
    check_command_line()
    main()

"""Raw recordings and stimuli -> a prepared study under outputs/prepared.

python scripts/prepare.py experiment=demo
python scripts/prepare.py study=scenes_eeg study.n_subjects=10
python scripts/prepare.py study=digit69 study.raw=<digit69_28x28.mat>
"""

import hydra
from omegaconf import DictConfig

from brain2img.command_line.arguments import check_command_line


@hydra.main(version_base="1.3", config_path="../configs", config_name="prepare")
def main(cfg: DictConfig) -> None:
    from brain2img.command_line.run import run
    from brain2img.stages.prepare import prepare

    run(prepare, cfg)


if __name__ == "__main__":
    check_command_line()
    main()

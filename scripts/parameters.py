"""Counts the parameters of every published model at its published size, and compares them with the publication.

python scripts/parameters.py
python scripts/parameters.py models=[published/mindbridge_subj01,published/mindbridge_subj1257]
python scripts/parameters.py models=[published/mindbridge_subj01] encoder.n_blocks=2

Nothing is trained or downloaded, and no memory is used: the models are built on the meta device. Ends with exit code 1
where live and dead parameters do not add up to the published total and the experiment states no reason.
"""

import hydra
from omegaconf import DictConfig

from brain2img.command_line.arguments import check_command_line


@hydra.main(version_base="1.3", config_path="../configs", config_name="parameters")
def main(cfg: DictConfig) -> None:
    from brain2img.analyses.parameters import parameters
    from brain2img.command_line.run import run

    run(parameters, cfg, collective=True)


if __name__ == "__main__":
    check_command_line()
    main()

"""The raw files of a study, from the services that hold them; see <study>.md for its terms, size and folders.

python data_prep/download.py study=nsd subjects=[1] list=true
python data_prep/download.py study=nsd subjects=[1] sessions=[1,2,3] accept_terms=true raw=<folder>
python data_prep/download.py study=things_eeg2 subjects=[1,2] study.form=preprocessed accept_terms=true
python data_prep/download.py study=things_meg only=[epochs,design]
"""

import hydra
from omegaconf import DictConfig

from brain2img.command_line.arguments import check_command_line


@hydra.main(version_base="1.3", config_path="../configs", config_name="download")
def main(cfg: DictConfig) -> None:
    from brain2img.command_line.run import run
    from brain2img.stages.download import download

    run(download, cfg, collective=True)


if __name__ == "__main__":
    check_command_line()
    main()

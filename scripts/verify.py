"""Finished folders -> whether every file in them is still the one that was written; exit code 1 where one is not.

python scripts/verify.py
python scripts/verify.py folder=outputs/train/demo/mindbridge
python scripts/verify.py folder=outputs/prepared record=true    # of an older version: keeps hashes from now on

Stages compare what they read themselves; this looks at all files, those that no stage has read for long included.
"""

import hydra
from omegaconf import DictConfig

from brain2img.command_line.arguments import check_command_line


@hydra.main(version_base="1.3", config_path="../configs", config_name="verify")
def main(cfg: DictConfig) -> None:
    from brain2img.command_line.run import run
    from brain2img.stages.verify import verify

    run(verify, cfg, collective=True)


if __name__ == "__main__":
    check_command_line()
    main()

"""Several runs side by side, one line a run, under outputs/compare: Markdown for a README, CSV, parquet, figure, page.

python scripts/compare.py runs=[demo]
python scripts/compare.py runs=[outputs/scores/scenes/mindbridge,outputs/train/scenes/mindeye,demo] name=table

Reads what was written and computes nothing anew but paired differences. Runs of different studies, galleries or
repetitions stand in different tables.
"""

import hydra
from omegaconf import DictConfig

from brain2img.command_line.arguments import check_command_line


@hydra.main(version_base="1.3", config_path="../configs", config_name="compare")
def main(cfg: DictConfig) -> None:
    from brain2img.analyses.compare import compare
    from brain2img.command_line.run import run

    run(compare, cfg, collective=True)


if __name__ == "__main__":
    check_command_line()
    main()

"""Predictions and reconstructions -> scores, summary.json, grid.png and report.html under outputs/scores.

python scripts/evaluate.py experiment=demo
python scripts/evaluate.py run=outputs/train/demo/fmri_mindbridge
"""

import hydra
from omegaconf import DictConfig

from brain2img.command_line.arguments import check_command_line


@hydra.main(version_base="1.3", config_path="../configs", config_name="evaluate")
def main(cfg: DictConfig) -> None:
    from brain2img.command_line.run import run
    from brain2img.stages.evaluate import evaluate

    run(evaluate, cfg, collective=True)


if __name__ == "__main__":
    check_command_line()
    main()

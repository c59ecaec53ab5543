"""All stages of an experiment that are not finished, then the scores and the report.

python scripts/pipeline.py experiment=demo
python scripts/pipeline.py experiment=demo modalities=[meg] paths.outputs=<folder>
python scripts/pipeline.py experiment=demo study=nsd raw=<NSD>
python scripts/pipeline.py experiment=digit69 study.raw=<digit69_28x28.mat>
"""

import hydra
from omegaconf import DictConfig

from brain2img.command_line.arguments import check_command_line


@hydra.main(version_base="1.3", config_path="../configs", config_name="pipeline")
def main(cfg: DictConfig) -> None:
    from brain2img.command_line.run import run
    from brain2img.pipeline import pipeline

    run(pipeline, cfg, collective=True)


if __name__ == "__main__":
    check_command_line()
    main()

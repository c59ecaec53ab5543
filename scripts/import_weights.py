"""A published checkpoint -> a run under outputs/train that predict.py and the stages after it can use.

The study must be prepared and its stimuli embedded. Every weight must find its place; the report stands in the run.

python scripts/import_weights.py weights=<file>.pth experiment=published/mindbridge_subj1257 study.raw=<NSD>
python scripts/import_weights.py weights=<file>.pth experiment=published/mindbridge_subj02
python scripts/import_weights.py weights=<file>.pth layout=atm experiment=published/atm_s_sub08 study.raw=<THINGS-EEG2>
    encoder.published_slice=true
"""

import hydra
from omegaconf import DictConfig

from brain2img.command_line.arguments import check_command_line


@hydra.main(version_base="1.3", config_path="../configs", config_name="import_weights")
def main(cfg: DictConfig) -> None:
    from brain2img.command_line.run import run
    from brain2img.stages.import_weights import import_weights

    run(import_weights, cfg)


if __name__ == "__main__":
    check_command_line()
    main()

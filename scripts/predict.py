"""A trained run -> decoded embeddings, with the control conditions, under outputs/predictions.

python scripts/predict.py run=outputs/train/demo/fmri_mindbridge
python scripts/predict.py run=outputs/train/demo/eeg_atm conditions=[decoded,noise]
"""

import hydra
from omegaconf import DictConfig

from brain2img.command_line.arguments import check_command_line


@hydra.main(version_base="1.3", config_path="../configs", config_name="predict")
def main(cfg: DictConfig) -> None:
    from brain2img.command_line.run import run
    from brain2img.stages.predict import predict

    run(predict, cfg)


if __name__ == "__main__":
    check_command_line()
    main()

"""Predictions of stimuli a decoder has not seen -> a prior under outputs/priors, which later stages then use.

python scripts/fit_prior.py run=outputs/train/demo/fmri_ridge prior=affine
python scripts/fit_prior.py run=outputs/train/demo/eeg_atm prior=diffusion prior_fit.source=validation
python scripts/reconstruct.py run=outputs/train/demo/fmri_ridge prior=affine overwrite=true
"""

import hydra
from omegaconf import DictConfig

from brain2img.command_line.arguments import check_command_line


@hydra.main(version_base="1.3", config_path="../configs", config_name="fit_prior")
def main(cfg: DictConfig) -> None:
    from brain2img.command_line.run import run
    from brain2img.stages.fit_prior import fit_prior

    run(fit_prior, cfg)


if __name__ == "__main__":
    check_command_line()
    main()

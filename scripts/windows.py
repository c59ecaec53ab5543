"""When and where: decoding from growing and sliding windows (EEG, MEG) and from regions, under outputs/windows.

python scripts/windows.py run=outputs/train/demo/eeg_ridge
python scripts/windows.py run=outputs/train/scenes_eeg/atm windows.how=mask windows.sensors=true name=atm_mask
python scripts/windows.py experiment=scenes_eeg/atm windows.growing=[] windows.sliding.step=0.02 windows.regions=false
"""

import hydra
from omegaconf import DictConfig

from brain2img.command_line.arguments import check_command_line


@hydra.main(version_base="1.3", config_path="../configs", config_name="windows")
def main(cfg: DictConfig) -> None:
    from brain2img.analyses.windows import windows
    from brain2img.command_line.run import run

    run(windows, cfg)


if __name__ == "__main__":
    check_command_line()
    main()

"""When and where: decoding from growing and sliding windows (EEG, MEG) and from regions, under outputs/windows.

python scripts/windows.py run=outputs/train/demo/eeg_ridge
python scripts/windows.py run=outputs/train/scenes_eeg/atm windows.how=mask windows.sensors=true name=atm_mask
python scripts/windows.py experiment=scenes_eeg/atm windows.growing=[] windows.sliding.step=0.02 windows.regions=false
"""

import hydra
from omegaconf import DictConfig

from brain2img.stages.command_line import check_command_line


@hydra.main(version_base="1.3", config_path="../configs", config_name="windows")
def main(cfg: DictConfig) -> None:
    from brain2img.stages.run import run
    from brain2img.stages.windows import windows

    run(windows, cfg)


if __name__ == "__main__":
    check_command_line()
    main()

"""Retrieval and reconstruction from the voxels of one set of regions at a time, under outputs/regions.

python scripts/regions.py run=outputs/train/demo/fmri_ridge
python scripts/regions.py run=outputs/train/demo/fmri_mindbridge regions.method=mask regions.part=without
python scripts/regions.py run=<run> "regions.sets={early:[V1,V2,V3],late:[FFA,PPA]}" regions.reconstruct=true
"""

import hydra
from omegaconf import DictConfig

from brain2img.command_line.arguments import check_command_line


@hydra.main(version_base="1.3", config_path="../configs", config_name="regions")
def main(cfg: DictConfig) -> None:
    from brain2img.analyses.regions import regions
    from brain2img.command_line.run import run

    run(regions, cfg)


if __name__ == "__main__":
    check_command_line()
    main()

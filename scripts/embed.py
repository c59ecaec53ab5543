"""Stimuli -> embeddings of the chosen spaces under outputs/cache.

python scripts/embed.py experiment=demo
python scripts/embed.py study=scenes_fmri space=[clip_vit_h14,pixels]
"""

import hydra
from omegaconf import DictConfig

from brain2img.command_line.arguments import check_command_line


@hydra.main(version_base="1.3", config_path="../configs", config_name="embed")
def main(cfg: DictConfig) -> None:
    from brain2img.command_line.run import run
    from brain2img.stages.embed import embed

    run(embed, cfg)


if __name__ == "__main__":
    check_command_line()
    main()

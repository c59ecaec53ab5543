"""Single-trial betas of fMRI in a BIDS derivative -> a prepared study; see bids_betas.md.

python data_prep/bids_betas.py raw=<dataset>
python data_prep/bids_betas.py raw=<dataset> study.maps.derivative=derivatives/glmsingle study.entities.space=T1w
"""

from brain2img.command_line.arguments import prepare_study

if __name__ == "__main__":
    prepare_study("bids_betas")

"""EEG or MEG of a BIDS dataset -> a prepared study; see bids.md.

python data_prep/bids.py raw=<dataset>
python data_prep/bids.py raw=<dataset> study.datatype=meg study.events.stimulus_column=stim_id study.jobs=2
"""

from brain2img.command_line.arguments import prepare_study

if __name__ == "__main__":
    prepare_study("bids")

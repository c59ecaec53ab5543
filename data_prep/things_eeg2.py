"""THINGS-EEG2, raw or preprocessed -> a prepared study; see things_eeg2.md.

python data_prep/things_eeg2.py raw=<folder>
python data_prep/things_eeg2.py raw=<folder> study.form=preprocessed study.subjects=[1,2] study.jobs=2
"""

from brain2img.command_line.arguments import prepare_study

if __name__ == "__main__":
    prepare_study("things_eeg2")

"""A study of your own, arrays and tables -> a prepared study; see docs/own_data.md.

python data_prep/arrays.py raw=<folder> study.modality=eeg study.units=uV study.sfreq=250 study.tmin=-0.2
"""

from brain2img.command_line.arguments import prepare_study

if __name__ == "__main__":
    prepare_study("arrays")

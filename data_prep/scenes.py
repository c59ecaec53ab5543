"""The simulated study -> a prepared study; see scenes.md.

python data_prep/scenes.py
python data_prep/scenes.py study=scenes_eeg study.n_subjects=10
"""

from brain2img.command_line.arguments import prepare_study

if __name__ == "__main__":
    prepare_study("scenes_fmri")

"""THINGS-MEG -> a prepared study; see things_meg.md.

python data_prep/things_meg.py raw=<ds004212>
python data_prep/things_meg.py raw=<ds004212> study.form=ctf study.jobs=2
"""

from brain2img.command_line.arguments import prepare_study

if __name__ == "__main__":
    prepare_study("things_meg")

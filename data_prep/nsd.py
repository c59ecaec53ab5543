"""The Natural Scenes Dataset -> a prepared study; see nsd.md.

python data_prep/nsd.py raw=<NSD>
python data_prep/nsd.py raw=<NSD> study.subjects=[1] study.sessions=early study.shared=982 study.jobs=4
"""

from brain2img.command_line.arguments import prepare_study

if __name__ == "__main__":
    prepare_study("nsd")

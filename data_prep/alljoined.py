"""Alljoined-1.6M -> a prepared study; see alljoined.md.

python data_prep/alljoined.py raw=<Alljoined-1.6M>
python data_prep/alljoined.py raw=<Alljoined-1.6M> study.form=preprocessed "study.subjects=[1,2]"
"""

from brain2img.command_line.arguments import prepare_study

if __name__ == "__main__":
    prepare_study("alljoined")

"""fMRI of handwritten 6s and 9s -> a prepared study; see digit69.md.

python data_prep/digit69.py raw=<digit69_28x28.mat>
"""

from brain2img.command_line.arguments import prepare_study

if __name__ == "__main__":
    prepare_study("digit69")

"""Names that systems leave among data are known, whatever their case and wherever they lie; data's are not taken for
them."""

from pathlib import Path

import pytest

from brain2img.data.file_names import is_junk


@pytest.mark.parametrize("name", [".DS_Store", ".ds_store", "Thumbs.db", "thumbs.DB", "desktop.ini", "._sub-01.edf",
                                  "__MACOSX/sub-01/._x.npy", "a/b/._c.nii.gz", "@eaDir/x.png", ".nfs0000001",
                                  Path("sub-01/.DS_Store")])
def test_junk(name):
    assert is_junk(name)


@pytest.mark.parametrize("name", ["sub-01.edf", "_underscore.npy", "a._b.npy", "thumbs.db.png", "sub-01/eeg/x.vhdr",
                                  "sample000.coco73k.npy", ".hidden.png", Path("DS_Store/x.jpg")])
def test_data(name):
    assert not is_junk(name)

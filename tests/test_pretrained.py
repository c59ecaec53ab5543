from __future__ import annotations

import pytest

from brain2img import pretrained


def test_own_weights_are_found_others_left_alone_and_missing_ones_named(tmp_path, monkeypatch):
    (tmp_path / "scenes_clip").mkdir()
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    assert pretrained.locate("scenes_clip") == str(tmp_path / "scenes_clip")
    for other in ("ViT-H-14", "kandinsky-community/kandinsky-2-2-decoder", "weights/scenes_judge"):
        assert pretrained.locate(other) == other
    with pytest.raises(ValueError, match=r"weights 'scenes_judge': expected them in .* Train them with"):
        pretrained.locate("scenes_judge")

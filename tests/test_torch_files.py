"""Files of torch: read onto the CPU, without running code, and what is wrong with them is said truly."""

from __future__ import annotations

import argparse
import io
import pathlib
import pickletools
import zipfile
from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from brain2img.artifacts import read_torch_file
from brain2img.decoders.published_weights import without_wrappers
from brain2img.step_training import StepPlan, train

CURE = "Download it again."


def read(path):
    return read_torch_file(path, what=f"weights {path.name}", cure=CURE)


def as_if_saved_on_a_gpu(path):
    """Rewrite the places of the tensors in a file from "cpu" to "cuda:0"."""
    held = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            if name.endswith("data.pkl"):
                assert b"X\x03\x00\x00\x00cpu" in content
                content = content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
                pickletools.dis(content, out=io.StringIO())
            held[name] = content
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in held.items():
            archive.writestr(name, content)


def test_scalars_and_arrays_of_numpy_paths_and_namespaces_are_data(tmp_path):
    stored = {"epoch": np.int64(7), "loss": np.float32(0.5), "best": np.bool_(True), "lrs": np.arange(3.0),
              "ids": np.array([[1, 2]], dtype=np.int16), "path": pathlib.PosixPath("/a/b"),
              "args": argparse.Namespace(lr=0.1), "state": OrderedDict(w=torch.ones(2))}
    torch.save(stored, tmp_path / "a.pt")
    found = read(tmp_path / "a.pt")
    assert (found["epoch"], found["loss"], bool(found["best"]), found["args"].lr) == (7, 0.5, True, 0.1)
    np.testing.assert_array_equal(found["lrs"], [0, 1, 2])
    np.testing.assert_array_equal(found["ids"], [[1, 2]])
    assert str(found["path"]) == "/a/b"
    assert torch.equal(found["state"]["w"], torch.ones(2))


def test_what_else_it_asks_for_is_named(tmp_path):
    torch.save({"a": SimpleNamespace()}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"weights a.pt: expected tensors.*asks for types.SimpleNamespace, .*running "
                                         r"code\. If you trust it, save its weights alone"):
        read(tmp_path / "a.pt")
    torch.save({"a": io.StringIO}, tmp_path / "b.pt")
    with pytest.raises(ValueError, match=r"asks for _?io.StringIO"):
        read(tmp_path / "b.pt")


def test_what_is_there_instead_is_said(tmp_path):
    path = tmp_path / "a.pt"
    for content, said in [(b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
                          (b"<!DOCTYPE html><html>", "a web page"),
                          (b"", "an empty one.*Download it again"),
                          (b"garbage", "damaged file of 7 bytes.*Download it again")]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"weights a.pt: expected .*{said}"):
            read(path)
    torch.save({"w": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match="expected a whole checkpoint, got a truncated or damaged file"):
        read(path)


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(24, "Too many open files"),
                                   MemoryError("no memory"),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory: 4 GB")])
def test_errors_of_the_system_are_not_called_damage(tmp_path, monkeypatch, error):
    torch.save({}, tmp_path / "a.pt")

    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr(torch, "load", fails)
    with pytest.raises(type(error), match=str(error).replace("[", r"\[").replace("]", r"\]")):
        read(tmp_path / "a.pt")


def test_a_file_of_before_torch_1_6_is_read(tmp_path):
    torch.save({"w": torch.arange(3), "n": np.int64(2)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    assert read(tmp_path / "a.pt")["w"].tolist() == [0, 1, 2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="where there is a GPU it loads anyway")
def test_what_was_saved_on_a_gpu_is_read_without_one(tmp_path):
    """A prior that was being trained on a GPU goes on without one."""
    torch.save({"w": torch.arange(4.0)}, tmp_path / "a.pt")
    as_if_saved_on_a_gpu(tmp_path / "a.pt")
    with pytest.raises(RuntimeError, match="Attempting to deserialize object on a CUDA device"):
        torch.load(tmp_path / "a.pt", weights_only=True)
    assert read(tmp_path / "a.pt")["w"].tolist() == [0, 1, 2, 3]

    def fit(steps, folder):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        plan = StepPlan(steps=steps, batch_size=2, lr=0.1, checkpoint_every=2, ema=0.9)
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
        train(model, lambda rows, generator: {"mse": model(x[rows]).square().mean()}, n_items=8, plan=plan,
              folder=folder, description="prior")
        return model.weight.detach()

    whole = fit(2, tmp_path / "prior")
    as_if_saved_on_a_gpu(tmp_path / "prior" / "checkpoint.pt")
    assert torch.equal(fit(2, tmp_path / "prior"), whole)


def test_names_of_wrappers_are_taken_out(tmp_path, caplog):
    caplog.set_level("INFO")
    path, weight = tmp_path / "a.pt", torch.ones(1)
    bare = {"embedder.1.weight": weight, "translator.mlp.0.weight": weight, "head_image.bias": weight}
    assert without_wrappers(bare, path=path) == bare
    assert not caplog.text
    for before in ("_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module.", "_fsdp_wrapped_module."):
        assert without_wrappers({before + key: value for key, value in bare.items()}, path=path) == bare
    assert "_fsdp_wrapped_module taken out of 3 of 3 names" in caplog.text
    partly = {"embedder._orig_mod.1.weight": weight, "translator.module.mlp.0.weight": weight,
              "head_image.bias": weight}
    assert without_wrappers(partly, path=path) == bare
    assert "_orig_mod, module taken out of 2 of 3 names" in caplog.text
    with pytest.raises(ValueError, match=r"expected one weight of each name, got 'a' and 'module\.a'"):
        without_wrappers({"a": weight, "module.a": weight}, path=path)

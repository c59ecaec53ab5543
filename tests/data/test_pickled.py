"""Pickled dictionaries of arrays: read without loading what is large, and without running anything."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest

from brain2img.data.pickled import ArrayInFile, read_pickled

LARGE = np.random.default_rng(0).standard_normal((30, 20_000))
VALUES = {"data": LARGE, "names": ["a", "b"], "sfreq": 1000, "small": np.arange(5), "scalar": np.float64(2.5)}


def dump(path, values, protocol):
    with path.open("wb") as file:
        pickle.dump(values, file, protocol=protocol)


@pytest.mark.parametrize("protocol", ["npy", 2, 3, 4, 5])
@pytest.mark.parametrize("order", ["C", "F"])
def test_large_arrays_stay_in_the_file(tmp_path, protocol, order):
    path = tmp_path / "x.npy"
    written = {**VALUES, "data": np.asarray(LARGE, order=order)}
    if protocol == "npy":
        np.save(path, written, allow_pickle=True)
    else:
        dump(path, written, protocol)
    values = read_pickled(path, keys=("data", "names"))
    assert {k: values[k] for k in ("names", "sfreq", "scalar")} == {"names": ["a", "b"], "sfreq": 1000, "scalar": 2.5}
    np.testing.assert_array_equal(values["small"], np.arange(5))
    data = values["data"].open() if isinstance(values["data"], ArrayInFile) else values["data"]
    assert isinstance(values["data"], ArrayInFile) or protocol == 2  # which wraps bytes as text
    np.testing.assert_array_equal(data, LARGE)


@pytest.mark.parametrize("protocol", [4, 5])
def test_permuted_axes_are_read_as_they_were(tmp_path, protocol):
    """NumPy 2 pickles such arrays as they lie in memory, whatever the order of the axes."""
    x = np.random.default_rng(0).normal(size=(40, 32, 250))
    for permuted in (x[np.arange(40)][:, np.arange(32)[::-1]], x.transpose(1, 2, 0), x[::2]):
        dump(tmp_path / "x", {"data": permuted}, protocol)
        data = read_pickled(tmp_path / "x", keys=("data",))["data"]
        np.testing.assert_array_equal(data.open() if isinstance(data, ArrayInFile) else data, permuted)


def test_what_cannot_stay_in_the_file_is_loaded(tmp_path):
    dump(tmp_path / "x", {"data": LARGE.astype(">f8"), "text": "x" * 2_000_000}, 4)
    values = read_pickled(tmp_path / "x", keys=("data",))
    np.testing.assert_array_equal(values["data"], LARGE)
    assert len(values["text"]) == 2_000_000


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hacked",)


class Nested:
    def __reduce__(self):
        return eval, ("__import__('os').system('touch hacked')",)


@pytest.mark.parametrize(("values", "asks"), [
    ({"data": Hostile()}, "posix.system"), ({"data": np.array([Nested()], dtype=object)}, "builtins.eval")])
@pytest.mark.parametrize("npy", [True, False])
def test_hostile_pickles_are_refused(tmp_path, monkeypatch, values, asks, npy):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.npy"
    np.save(path, values, allow_pickle=True) if npy else dump(path, values, 4)
    with pytest.raises(ValueError, match=rf"x\.npy: expected nothing but arrays.*asks for {asks}. It may be hostile"):
        read_pickled(path, keys=("data",))
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("keep", [0, 3, 90, 2_000_000, -1])
def test_truncated_files_are_named(tmp_path, keep):
    path = tmp_path / "x.npy"
    np.save(path, VALUES, allow_pickle=True)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"x\.npy: expected .*(truncated or damaged file of|got no)"):
        read_pickled(path, keys=("data",))


def test_other_content_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"x\.npy: expected a pickled dictionary, got no such file"):
        read_pickled(tmp_path / "x.npy", keys=("data",))
    np.save(tmp_path / "x.npy", {"a": 1}, allow_pickle=True)
    with pytest.raises(ValueError, match=r"x\.npy: expected a dictionary with data, got \['a'\]"):
        read_pickled(tmp_path / "x.npy", keys=("data",))
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"x\.npy: expected"):
        read_pickled(tmp_path / "x.npy", keys=("data",))

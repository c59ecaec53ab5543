"""Pickled dictionaries of arrays: read without loading what is large, and without running anything."""

from __future__ import annotations

import collections
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
    with pytest.raises(ValueError, match=r"x\.npy: expected .*(truncated or damaged file of|got an empty)"):
        read_pickled(path, keys=("data",))


def test_other_content_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"x\.npy: expected a pickled dictionary, got no such file"):
        read_pickled(tmp_path / "x.npy", keys=("data",))
    np.save(tmp_path / "x.npy", {"a": 1}, allow_pickle=True)
    with pytest.raises(ValueError, match=r"x\.npy: expected a dictionary with data, got \['a'\]"):
        read_pickled(tmp_path / "x.npy", keys=("data",))
    for plain, got in ((np.zeros(3), r"\(3,\) of float64"), (np.float64(2.5), r"\(\) of float64")):
        np.save(tmp_path / "x.npy", plain)
        with pytest.raises(ValueError, match=rf"x\.npy: expected a pickled dictionary .* a plain array {got}. Give"):
            read_pickled(tmp_path / "x.npy", keys=("data",))


SCALARS = [np.float64(2.5), np.int16(-3), np.bool_(True), np.str_("a"), np.bytes_(b"b"), np.datetime64("2024-05-01"),
           np.array(1.5), np.float32, {1, 2}, collections.OrderedDict(a=1), 2j]


@pytest.mark.parametrize("protocol", ["npy", 2, 4, 5])
@pytest.mark.parametrize("value", SCALARS, ids=lambda value: type(value).__name__)
def test_scalars_and_plain_containers_are_no_damage(tmp_path, protocol, value):
    path = tmp_path / "x.npy"
    if protocol == "npy":
        np.save(path, {"data": value}, allow_pickle=True)
    else:
        dump(path, {"data": value}, protocol)
    found = read_pickled(path, keys=("data",))["data"]
    assert found == value
    assert isinstance(value, type(found))  # an ordered dictionary is a plain one


def test_names_of_either_numpy(tmp_path):
    """NumPy 1 calls ``numpy.core`` what NumPy 2 calls ``numpy._core``; both may be read by the other."""
    content = pickle.dumps({"data": np.float64(2.5), "x": np.arange(3)}, protocol=2)
    assert b"numpy._core" in content
    for other in (b"numpy.core", b"numpy._core"):
        (tmp_path / "x").write_bytes(content.replace(b"numpy._core", other))
        values = read_pickled(tmp_path / "x", keys=("data", "x"))
        assert values["data"] == 2.5
        np.testing.assert_array_equal(values["x"], np.arange(3))


def test_arrays_of_python_2(tmp_path):
    """Its strings are bytes: of an array above 127 they are no ASCII."""
    (tmp_path / "x").write_bytes(
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\nscalar\nq\x03cnumpy\ndtype\nq\x04U\x02f8K\x00K\x01"
        b"\x87Rq\x05(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"U\x08" + np.float64(-1e300).tobytes() + b"\x86Rq\x06u.")
    assert read_pickled(tmp_path / "x", keys=("data",))["data"] == -1e300


def test_a_matrix_and_a_map_of_a_file_are_arrays(tmp_path):
    mapped = np.memmap(tmp_path / "map", mode="w+", dtype="f4", shape=(3,))
    mapped[:] = (1, 2, 3)
    dump(tmp_path / "x", {"data": mapped, "matrix": np.array([[1, 2]]).view(np.matrix)}, 4)
    values = read_pickled(tmp_path / "x", keys=("data", "matrix"))
    assert type(values["data"]) is type(values["matrix"]) is np.ndarray
    assert values["data"].tolist() == [1, 2, 3]
    assert values["matrix"].tolist() == [[1, 2]]

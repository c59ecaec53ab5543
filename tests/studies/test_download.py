"""Getting the raw files: every service played on loopback, broken connections, wrong bytes, and what is refused."""

from __future__ import annotations

import base64
import inspect
import io
import shutil
import threading
import zipfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import yaml
from hydra.utils import get_class
from omegaconf import OmegaConf
from services import Services, services

from brain2img.artifacts import claim
from brain2img.stages.build import build_study
from brain2img.stages.download import Item, Wanted, download
from brain2img.studies.downloading import fetching
from brain2img.studies.downloading.fetching import PartialFile, fetch, unpack
from brain2img.studies.downloading.services import OSF, S3, Figshare, HuggingFace, fits
from brain2img.studies.nsd import FORMS

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "download").glob("*.yaml"))
DATA = np.random.default_rng(0).bytes(300_000)
#: object_images/cat/cat_01b.jpg ("cat"), made by `zip -X -P secret`: zipfile reads encrypted archives, but writes none.
ENCRYPTED = base64.b64decode(
    "UEsDBAoACQAAAAAAISioQ16eDwAAAAMAAAAdAAAAb2JqZWN0X2ltYWdlcy9jYXQvY2F0XzAxYi5qcGedAq37K+pX0v+B/tCT6axQ"
    "SwcIqENeng8AAAADAAAAUEsBAh4DCgAJAAAAAAAhKKhDXp4PAAAAAwAAAB0AAAAAAAAAAQAAAKSBAAAAAG9iamVjdF9pbWFnZXMv"
    "Y2F0L2NhdF8wMWIuanBnUEsFBgAAAAABAAEASwAAAFoAAAAAAA==")


@pytest.fixture
def web(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(fetching, "PAUSE", 0.0)
    with services() as played:
        yield played


def order_of_images() -> bytes:
    """Return an ``image_metadata.npy`` of one training and one test image."""
    out = io.BytesIO()
    np.save(out, np.array({"train_img_concepts": ["00001_cat"], "train_img_files": ["cat_01b.jpg"],
                           "test_img_concepts": ["00001_dog"], "test_img_files": ["dog_01b.jpg"]}), allow_pickle=True)
    return out.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def at(web: Services, service: str, files: dict[str, bytes]):
    """Put files at a service; returns the source that reads them."""
    place = {"osf": "abcde", "figshare": "123", "hub": "owner/set", "s3": "bucket"}[service]
    web.held[service][place] = files
    return {"osf": lambda: OSF(node=place, api=f"{web.address}/osf"),
            "figshare": lambda: Figshare(article=123, api=f"{web.address}/figshare"),
            "hub": lambda: HuggingFace(repo=place, endpoint=f"{web.address}/hub"),
            "s3": lambda: S3(bucket=place, endpoint=f"{web.address}/s3")}[service]()


def left(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


SERVICES = pytest.mark.parametrize("service", ["osf", "figshare", "hub", "s3"])


@SERVICES
def test_every_service_lists_and_sends_files_of_any_size(web, tmp_path, service):
    files = {"big.bin": DATA, "small.txt": b"a few words", "empty.txt": b"", "other.dat": b"not asked for"}
    source = at(web, service, files)
    found = source.files("*.bin") + source.files("*.txt")
    assert {file.path: file.size for file in found} == {"big.bin": 300_000, "small.txt": 11, "empty.txt": 0}
    kinds = {"osf": "sha256", "figshare": "md5", "hub": "sha256", "s3": "md5"}
    assert found[0].checksum.startswith(kinds[service] + ":")
    for file in found:
        fetch(source, file, tmp_path / file.path)
        assert (tmp_path / file.path).read_bytes() == files[file.path]
    assert left(tmp_path) == ["big.bin", "empty.txt", "small.txt"]


@pytest.mark.parametrize("service", ["osf", "hub", "s3"])  # figshare has no folders
def test_patterns_reach_into_folders(web, service):
    files = {name: b"x" for name in ("a.txt", "one/a.txt", "one/two/a.txt", "one/two/b.txt", "other/two/a.txt")}
    source = at(web, service, files)
    for pattern, expected in {"a.txt": ["a.txt"], "*/two/?.txt": ["one/two/a.txt", "one/two/b.txt", "other/two/a.txt"],
                              "one/**": ["one/a.txt", "one/two/a.txt", "one/two/b.txt"], "one/*": ["one/a.txt"],
                              "**/b.txt": ["one/two/b.txt"], "nowhere/*.txt": []}.items():
        assert [file.path for file in source.files(pattern)] == expected, pattern
    assert fits("sub-01/x[1].npy", "sub-01/x[1].npy")


@SERVICES
def test_a_broken_connection_is_gone_on_with_where_it_broke(web, tmp_path, service):
    name = "recording.bin"
    source = at(web, service, {name: DATA})
    web.drops[name] = [100_000, 50_000]
    (file,) = source.files(name)
    moved: list[int] = []
    fetch(source, file, tmp_path / name, arrived=moved.append)
    assert (tmp_path / name).read_bytes() == DATA
    assert sum(moved) == len(DATA)
    first, *rest = web.fetched(name)
    assert first in (None, "bytes=0-")
    begins = [int(asked.removeprefix("bytes=").rstrip("-")) for asked in rest]
    assert begins == sorted(begins)
    assert all(0 < begin <= 150_000 for begin in begins)


@SERVICES
def test_a_later_run_asks_for_the_rest_only(web, tmp_path, monkeypatch, service):
    monkeypatch.setattr(fetching, "ATTEMPTS", 1)
    name = "recording.bin"
    source = at(web, service, {name: DATA})
    web.drops[name] = [120_000]
    (file,) = source.files(name)
    with pytest.raises(ValueError, match=r"broke off|expected an answer, got none in 1 attempts"):
        fetch(source, file, tmp_path / name)
    (part,) = tmp_path.iterdir()
    arrived = part.stat().st_size
    assert part.suffix == ".part"
    assert 0 < arrived <= 120_000
    fetch(source, file, tmp_path / name)
    assert web.fetched(name)[-1] == f"bytes={arrived}-"
    assert (tmp_path / name).read_bytes() == DATA
    assert left(tmp_path) == [name]


@pytest.mark.parametrize("service", ["osf", "figshare", "hub"])
def test_a_server_that_knows_no_ranges_sends_it_from_the_beginning(web, tmp_path, service):
    source = at(web, service, {"a.bin": DATA})
    (file,) = source.files("a.bin")
    PartialFile.of(tmp_path / "a.bin", file).write_bytes(DATA[:1000])
    web.no_ranges = True
    fetch(source, file, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == DATA


@SERVICES
@pytest.mark.parametrize("size", [50, 5000])  # the hub lists small files by another checksum
def test_a_wrong_checksum_leaves_nothing_behind(web, tmp_path, service, size):
    source = at(web, service, {"a.bin": DATA[:size]})
    web.wrong = {"a.bin"}
    (file,) = source.files("a.bin")
    with pytest.raises(ValueError, match=r"a\.bin: expected the \w+ \w{32,}, as listed, got \w{32,}\. .*thrown away"):
        fetch(source, file, tmp_path / "a.bin")
    assert left(tmp_path) == []


def test_what_remains_of_another_version_is_not_gone_on_with(web, tmp_path):
    target = tmp_path / "a.bin"
    (old,) = at(web, "osf", {"a.bin": DATA[::-1]}).files("a.bin")
    PartialFile.of(target, old).write_bytes(DATA[::-1][:1000])
    source = at(web, "osf", {"a.bin": DATA})
    fetch(source, source.files("a.bin")[0], target)
    assert web.fetched("a.bin") == [None]
    assert left(tmp_path) == ["a.bin"]


def test_an_object_of_several_pieces_is_checked_by_size_and_by_its_version(web, tmp_path):
    web.pieces = {"a.bin"}
    source = at(web, "s3", {"a.bin": DATA})
    (file,) = source.files("a.bin")
    assert file.checksum.startswith("etag:")
    fetch(source, file, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == DATA
    web.status["a.bin"] = [412]  # If-Match: it was changed since
    with pytest.raises(ValueError, match=r"s3://bucket/a\.bin: expected to be given it, got HTTP status 412"):
        fetch(source, file, tmp_path / "again.bin")


@SERVICES
def test_a_service_that_is_busy_is_asked_again_and_one_that_refuses_is_not(web, tmp_path, service):
    source = at(web, service, {"a.bin": DATA})
    (file,) = source.files("a.bin")
    web.status["a.bin"] = [429, 500] if service != "s3" else [500]
    fetch(source, file, tmp_path / "a.bin")
    web.asked.clear()
    web.status["a.bin"] = [403]
    with pytest.raises(ValueError, match=r"expected to be given it, got HTTP status 403\. \w+"):
        fetch(source, file, tmp_path / "b.bin")
    assert len(web.asked) == 1


def test_a_service_that_never_answers_is_given_up(web, tmp_path):
    source = at(web, "osf", {"a.bin": DATA})
    web.status["a.bin"] = [503] * 9
    with pytest.raises(ValueError, match=r"HTTP status 503: expected an answer, got none in 5 attempts"):
        fetch(source, source.files("a.bin")[0], tmp_path / "a.bin")
    assert len(web.asked) == 5


def test_more_than_was_listed_is_refused(web, tmp_path):
    source = at(web, "osf", {"a.bin": DATA[:1000]})
    (file,) = source.files("a.bin")
    web.held["osf"]["abcde"]["a.bin"] = DATA
    with pytest.raises(ValueError, match=r"expected 1000 bytes, as listed, got more"):
        fetch(source, file, tmp_path / "a.bin")
    assert not (tmp_path / "a.bin").exists()


def test_two_processes_do_not_write_one_file(web, tmp_path):
    source = at(web, "osf", {"a.bin": DATA})
    one = Wanted("item", source, source.files("a.bin")[0], tmp_path / "a.bin", None)
    errors = []

    def other():
        try:
            one.get(arrived=lambda n: None, overwrite=False, password=None)
        except ValueError as error:
            errors.append(str(error))

    with claim(tmp_path / "a.bin"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "a.bin: expected no other command at work there, got another thread" in errors[0]
    assert left(tmp_path) == []
    other()
    assert (tmp_path / "a.bin").read_bytes() == DATA
    asked = len(web.asked)
    other()
    assert len(web.asked) == asked, "another command fetched it"


@pytest.mark.parametrize("name", ["../outside.txt", "/outside.txt"])
def test_archive_members_stay_in_their_folder(tmp_path, name):
    (tmp_path / "a.zip").write_bytes(zipped({"inside.txt": b"x", name: b"x"}))
    with pytest.raises(ValueError, match=r"a\.zip: expected paths that stay in their folder, got '.*outside\.txt'"):
        unpack(tmp_path / "a.zip", tmp_path / "folder")
    assert left(tmp_path) == ["a.zip"]


def test_a_damaged_archive_is_refused_and_what_is_unpacked_stays(tmp_path):
    data = bytearray(zipped({"a.bin": DATA, "b.bin": DATA}))
    data[400_000] ^= 255  # within b.bin
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.zip: expected a whole zip archive, got a truncated .*Fetch it again"):
        unpack(tmp_path / "a.zip", tmp_path / "folder")
    assert left(tmp_path / "folder") == ["a.bin"]


# ---- the whole command


#: study -> form -> what lies where: (service, place) -> path -> content; and paths that must be there in the end.
def published(study: str, form: str) -> dict[tuple[str, str], dict[str, bytes]]:
    if study == "alljoined":
        edf = {f"raw_eeg/sub-{s:02d}/session_{n:02d}/block_{b:02d}/Subject {s}.edf": b"%d %d %d" % (s, n, b)
               for s in (1, 2) for n in (1, 2) for b in (1, 2)}
        edf["raw_eeg/sub-01/session_02 old/block_01/Subject 1.edf"] = b"left aside by the authors"
        tables = {f"preprocessed_eeg/sub-{s:02d}/{name}.parquet": b"table %d" % s
                  for s in (1, 2) for name in ("stim_order", "experiment_metadata_categories")}
        flat = {f"preprocessed_eeg/sub-{s:02d}/preprocessed_eeg_{part}_flat.npy": b"flat %d" % s
                for s in (1, 2) for part in ("training", "test")}
        return {("hub", "Alljoined/Alljoined-1.6M"): {
            "README.md": b"", **edf, **tables, **flat, "stimuli.zip": zipped({"images/00000.jpg": b"picture"})}}
    if study == "things_eeg2":
        return {("figshare", "18470912"): {
            f"sub-{s:02d}.zip": zipped({f"sub-{s:02d}/ses-{n:02d}/raw_eeg_{part}.npy": b"raw" * n for n in (1, 2)
                                        for part in ("training", "test")} | {f"__MACOSX/sub-{s:02d}/x": b"of a Mac"})
            for s in (1, 2)},
            ("hub", "LidongYang/EEG_Image_decode"): {
            f"Preprocessed_data_250Hz/sub-{s:02d}/preprocessed_eeg_{part}.npy": b"250 Hz" * s
            for s in (1, 2) for part in ("training", "test")},
            ("osf", "y63gw"): {"image_metadata.npy": order_of_images(),
                               "training_images.zip": zipped({"training_images/00001_cat/cat_01b.jpg": b"cat"}),
                               "test_images.zip": zipped({"test_images/00001_dog/dog_01b.jpg": b"dog"})}}
    if study == "things_meg":
        ds = [f"sub-BIGMEG{s}/ses-{n:02d}/meg/sub-BIGMEG{s}_ses-{n:02d}_task-main_run-01"
              for s in (1, 2) for n in (1, 2)]
        return {("s3", "openneuro.org"): {
            f"ds004212/{path}": data for path, data in {
                **{f"derivatives/preprocessed/preprocessed_P{s}-epo{k}.fif": b"epochs" for s in (1, 2)
                   for k in ("", "-1")},
                **{f"sourcedata/sample_attributes_P{s}.csv": b"table" for s in (1, 2)},
                **{f"{name}_meg.ds/{inner}": b"ctf" for name in ds for inner in ("x.meg4", "hz.ds/x.res4")},
                **{f"{name}_events.tsv": b"onset" for name in ds},
                "sub-BIGMEG1/ses-01/meg/sub-BIGMEG1_ses-01_task-rest_meg.json": b"not used"}.items()},
            ("osf", "jum2f"): {"images_THINGS.zip": zipped({"object_images/cat/cat_01b.jpg": b"cat"}),
                               "password_images.txt": b"", "Metadata/x.tsv": b""}}
    folder = "nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLMdenoise_RR"
    return {("s3", "natural-scenes-dataset"): {
        "nsddata/experiments/nsd/nsd_expdesign.mat": b"design", "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5": DATA,
        "nsddata/experiments/nsd/nsd_stim_info_merged.csv": b"info",
        "nsddata/ppdata/subj01/func1pt8mm/brainmask.nii.gz": b"mask",
        "nsddata/ppdata/subj01/func1pt8mm/roi/nsdgeneral.nii.gz": b"roi", f"{folder}/ncsnr.nii.gz": b"ncsnr",
        **{f"{folder}/betas_session{n:02d}.{kind}": b"betas" for n in (1, 2, 3) for kind in ("hdf5", "nii.gz")}},
        ("hub", "pscotti/naturalscenesdataset"): {
        "COCO_73k_annots_curated.npy": b"captions", "webdataset_avg_split/metadata_subj01.json": b"{}",
        **{f"webdataset_avg_split/{part}/{part}_subj0{s}_0.tar": b"tar" for s in (1, 2)
           for part in ("train", "val", "test")}},
        ("hub", "pscotti/mindeyev2"): {
        "betas_all_subj01_fp32_renorm.hdf5": b"betas", "coco_images_224_float16.hdf5": b"images",
        "wds/subj01/train/0.tar": b"tar", "wds/subj01/new_test/0.tar": b"tar", "wds/subj01/test/0.tar": b"tar"}}


@pytest.fixture
def command_of(web, composed, tmp_path):
    """Return a function that publishes a study on loopback and returns the configuration that fetches it."""

    def make(study: str, *overrides: str, form: str | None = None):
        for (service, place), files in published(study, form or "").items():
            web.held[service][place] = files
        cfg = composed("download", f"study={study}", "subjects=[1]", f"raw={tmp_path / 'raw'}",
                       *([f"study.form={form}"] if form else []), *overrides)
        config = OmegaConf.to_container(cfg.download)
        web.sources(config)
        OmegaConf.update(cfg, "download", config, force_add=True)
        return cfg

    return make


LAYOUTS = {
    ("alljoined", "edf"): ["raw_eeg/sub-01/session_01/block_02/Subject 1.edf", "stimuli/images/00000.jpg",
                           "preprocessed_eeg/sub-01/stim_order.parquet"],
    ("alljoined", "preprocessed"): ["preprocessed_eeg/sub-01/preprocessed_eeg_test_flat.npy",
                                    "preprocessed_eeg/sub-01/experiment_metadata_categories.parquet"],
    ("things_eeg2", "raw"): ["raw_data/sub-01/ses-02/raw_eeg_test.npy", "image_set/image_metadata.npy",
                             "image_set/test_images/00001_dog/dog_01b.jpg"],
    ("things_eeg2", "preprocessed"): ["Preprocessed_data_250Hz/sub-01/preprocessed_eeg_training.npy",
                                      "image_set/training_images/00001_cat/cat_01b.jpg"],
    ("things_meg", "epochs"): ["derivatives/preprocessed/preprocessed_P1-epo-1.fif", "object_images/cat/cat_01b.jpg",
                               "sourcedata/sample_attributes_P1.csv"],
    ("things_meg", "ctf"): [
        "sub-BIGMEG1/ses-02/meg/sub-BIGMEG1_ses-02_task-main_run-01_meg.ds/hz.ds/x.res4",
        "sub-BIGMEG1/ses-02/meg/sub-BIGMEG1_ses-02_task-main_run-01_events.tsv"],
    ("nsd", "auto"): ["nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLMdenoise_RR/betas_session03.hdf5",
                      "nsddata/ppdata/subj01/func1pt8mm/roi/nsdgeneral.nii.gz", "COCO_73k_annots_curated.npy"],
    ("nsd", "nifti"): ["nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLMdenoise_RR/betas_session03.nii.gz"],
    ("nsd", "averaged"): ["webdataset_avg_split/train/train_subj01_0.tar", "webdataset_avg_split/metadata_subj01.json"],
    ("nsd", "all_betas"): ["wds/subj01/new_test/0.tar", "coco_images_224_float16.hdf5"],
}


@pytest.mark.parametrize(("study", "form"), LAYOUTS)
def test_files_lie_where_the_study_class_looks_for_them(command_of, study, form):
    cfg = command_of(study, "accept_terms=true", "password=secret", form=form)
    raw = download(cfg)
    assert set(LAYOUTS[study, form]) <= set(left(raw))
    strangers = ("subj02", "sub-02", "P2", "BIGMEG2", "old", "rest", "MACOSX", "password", "README", ".zip", ".part")
    assert not [name for name in left(raw) if any(s in name.removesuffix(".zip.unpacked") for s in strangers)]
    kinds = {name.rpartition(".")[2] for name in left(raw) if "betas_session" in name}
    assert len(kinds) <= 1
    cfg.study.subjects = [1]
    if study != "nsd":
        assert build_study(cfg)[0].raw_id(raw)
    else:  # that class opens the design before it looks for the other files
        marks = {name: list(raw.glob(mark.format(betas=cfg.study.betas))) for name, mark in FORMS.items()}
        assert [name for name, found in marks.items() if found] == [form.replace("auto", "hdf5")]


def test_prepare_finds_in_what_was_fetched_what_was_published(command_of, web, tmp_path):
    """The identity that `prepare` gives raw files is that of the folder they were published from."""
    cfg = command_of("things_eeg2", "subjects=[1,2]", "accept_terms=true")
    source = tmp_path / "published"
    for (service, _), files in published("things_eeg2", "raw").items():
        folder = {"figshare": "raw_data", "osf": "image_set"}.get(service)
        for name, data in files.items() if folder else ():
            (source / folder).mkdir(parents=True, exist_ok=True)
            if name.endswith(".zip"):
                zipfile.ZipFile(io.BytesIO(data)).extractall(source / folder)
            else:
                (source / folder / name).write_bytes(data)
    cfg.study.subjects = [1, 2]
    study = build_study(cfg)[0]
    assert study.raw_id(download(cfg)) == study.raw_id(source)


def test_a_second_run_fetches_nothing_and_a_missing_file_only_itself(command_of, web):
    cfg = command_of("things_eeg2", "accept_terms=true")
    raw = download(cfg)
    web.asked.clear()
    download(cfg)
    assert web.asked == []
    (raw / "image_set" / "image_metadata.npy").unlink()
    download(cfg)
    assert [name for name, _ in web.asked] == ["image_metadata.npy"]
    web.asked.clear()
    cfg.overwrite = True
    download(cfg)
    assert len(web.asked) == 4


def test_only_the_sessions_and_items_asked_for_are_fetched(command_of):
    raw = download(command_of("nsd", "accept_terms=true", "sessions=[2]", "only=[betas]"))
    assert [Path(name).name for name in left(raw)] == ["betas_session02.hdf5"]


def test_listing_fetches_nothing_and_says_everything(command_of, web, tmp_path, caplog):
    caplog.set_level("INFO")
    download(command_of("nsd", "list=true"))
    assert web.asked == []
    assert not (tmp_path / "raw").exists()
    for text in ("pictures", "300 kB", "s3://natural-scenes-dataset", "https://cvnlab.slite.page",
                 "betas_session03.hdf5: 5 B, missing, checked by md5", "COCO_73k_annots_curated.npy: 8 B, missing"):
        assert text in caplog.text


@pytest.mark.parametrize("study", ["nsd", "things_meg", "things_eeg2", "alljoined"])
def test_terms_that_nobody_accepted_stop_it_before_a_service_is_asked(command_of, web, tmp_path, study):
    web.status["listing"] = [418] * 99
    with pytest.raises(ValueError, match=r"read and accepted the terms .* accept_terms=true:\n  .+: https://"):
        download(command_of(study))
    assert web.status["listing"] == [418] * 99
    assert not (tmp_path / "raw").exists()


def test_what_has_no_terms_needs_no_acceptance(command_of):
    assert left(download(command_of("things_meg", "only=[design]"))) == ["sourcedata/sample_attributes_P1.csv"]


def test_a_missing_password_is_asked_for_and_a_wrong_one_refused(command_of, web, tmp_path):
    with pytest.raises(ValueError, match=r"expected the password of images, got none\. .*only=\[design,epochs\]"):
        download(command_of("things_meg", "accept_terms=true"))
    cfg = command_of("things_meg", "accept_terms=true", "password=wrong", "only=[images]")
    web.held["osf"]["jum2f"]["images_THINGS.zip"] = ENCRYPTED
    with pytest.raises(ValueError, match=r"Bad password for file .* Give the right password"):
        download(cfg)
    assert left(tmp_path / "raw") == ["images_THINGS.zip"]
    cfg.password = "secret"
    web.asked.clear()
    assert left(download(cfg)) == ["images_THINGS.zip.unpacked", "object_images/cat/cat_01b.jpg"]
    assert web.asked == []


def test_too_little_room_is_refused_before_anything_is_fetched(command_of, web, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 10**6, 200_000))
    with pytest.raises(ValueError, match=r"disk: expected 0\.0003 GB free in .* for the 10 files to fetch, got 0"):
        download(command_of("nsd", "accept_terms=true"))
    assert web.asked == []
    assert not (tmp_path / "raw").exists()


def test_another_file_in_the_place_of_one_is_refused(command_of, web, tmp_path):
    place = tmp_path / "raw" / "nsddata" / "experiments" / "nsd" / "nsd_expdesign.mat"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"longer than published")
    cfg = command_of("nsd", "accept_terms=true", "only=[design]")
    with pytest.raises(ValueError, match=r"nsd_expdesign\.mat: expected 6 bytes, got 21\. Move it away"):
        download(cfg)
    place.write_bytes(b"DESIGN")  # the size is right, the content is not
    download(cfg)
    cfg.verify = True
    with pytest.raises(ValueError, match=r"nsd_expdesign\.mat: expected the md5 .*Move it away, or .*overwrite=true"):
        download(cfg)
    cfg.verify, cfg.overwrite = False, True
    download(cfg)
    assert place.read_bytes() == b"design"


@pytest.mark.parametrize(("study", "overrides", "message"), [
    ("nsd", ["subjects=[9]"], r"expected nsddata/ppdata/subj09/func1pt8mm/roi/\*\.nii\.gz \(regions\), got no such"),
    ("nsd", ["only=[betas,eyes]"], r"only: expected some of design, .*, got eyes"),
    ("alljoined", ["sessions=[5]"], r"expected raw_eeg/sub-01/session_05/block_\*/\*\.edf"),
])
def test_what_is_not_offered_is_refused(command_of, study, overrides, message):
    with pytest.raises(ValueError, match=message):
        download(command_of(study, "accept_terms=true", *overrides))


def test_the_command_fetches_and_says_what_comes_next_or_what_is_wrong(web, command, tmp_path):
    web.held["hub"]["Alljoined/Alljoined-1.6M"] = published("alljoined", "")["hub", "Alljoined/Alljoined-1.6M"]
    given = ["study=alljoined", "subjects=[1]", f"raw={tmp_path / 'raw'}", "only=[design]",
             f"+download.sources.hub.endpoint={web.address}/hub"]
    code, said = command("download", *given)
    assert code == 1
    assert "accept_terms=true" in said
    assert "Traceback" not in said
    code, said = command("download", *given, "accept_terms=true")
    assert code == 0
    assert f"Next: brain2img prepare study=alljoined raw={tmp_path / 'raw'} study.form=edf study.subjects=[1]" in said
    assert "HTTP Request" not in said  # what the clients log is for debugging
    assert len(left(tmp_path / "raw")) == 2


def test_a_study_without_files_elsewhere_says_so(composed):
    with pytest.raises(ValueError, match="expected one whose files a service holds, got 'scenes_eeg'"):
        download(composed("download", "study=scenes_eeg", "subjects=[1]"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_yaml_binds(path):
    config = yaml.safe_load(path.read_text())
    assert set(config) == {"terms", "sources", "items"}
    for source in config["sources"].values():
        assert set(source) - {"_target_"} <= set(inspect.signature(get_class(source["_target_"])).parameters)
    items = {name: Item(**values) for name, values in config["items"].items()}
    assert {item.source for item in items.values()} == set(config["sources"])
    for term in config["terms"]:
        assert {"what", "url"} <= set(term)
        assert set(term.get("items", ())) <= set(items)
    assert max(map(len, path.read_text().splitlines())) <= 150

"""Services that hold raw files: what lies there under which pattern, and how the rest of a file is asked for.

One class a service, each through its ordinary client, which is imported when the service is first asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from brain2img.studies.downloading.fetching import PartialFile, RemoteFile, Source

_CHUNK = 2**16  # bytes; what is lost of one when a connection breaks is asked for again
_TIMEOUT = 60  # s without a byte
_HEADERS = {"User-Agent": f"brain2img/{version('brain2img')}", "Accept-Encoding": "identity"}
_LOG_IN = "Read its page; where it asks for it, accept its terms there and log in with `hf auth login`."


def fits(path: str, pattern: str) -> bool:
    """Return whether a path fits a pattern, as `Source.files` takes it."""
    expression = re.escape(pattern).replace(r"\*\*/", "(?:.*/)?").replace(r"\*\*", ".*")
    return re.fullmatch(expression.replace(r"\*", "[^/]*").replace(r"\?", "[^/]"), path) is not None


def _fixed(pattern: str) -> str:
    """Return the beginning of a pattern that has no wildcard."""
    return re.split(r"[*?]", pattern, maxsplit=1)[0]


class OSF(Source):
    """The storage of a project or component of the Open Science Framework.

    API: https://developer.osf.io/#tag/Files. Sizes, md5 and SHA-256 are in the listing.

    Parameters
    ----------
    node
        The five letters of ``https://osf.io/<node>``.
    api
        Address of the API.
    """

    def __init__(self, *, node: str, api: str = "https://api.osf.io/v2") -> None:
        self.node = _given(node, "node", "the five letters of https://osf.io/<node>")
        self.api = api
        self._listed: dict[str, list[dict[str, Any]]] = {}

    def __str__(self) -> str:
        return f"https://osf.io/{self.node}"

    def files(self, pattern: str) -> list[RemoteFile]:
        """Return the files that fit, folder by folder."""
        root = f"{self.api}/nodes/{self.node}/files/osfstorage/?page[size]=100"
        return sorted(self._walk(root, "", pattern), key=lambda file: file.path)

    def send(self, file: RemoteFile, part: PartialFile) -> None:
        """Ask for the rest over HTTP."""
        _send(file.address, part, what=f"{self}: {file.path}")

    def _walk(self, url: str, folder: str, pattern: str) -> Iterator[RemoteFile]:
        for entry in self._entries(url):
            attributes = entry["attributes"]
            path = folder + attributes["name"]
            if attributes["kind"] == "folder":
                depth = path.count("/") + 1
                begin = "/".join(pattern.split("/")[:depth])
                if "**" in begin or (pattern.count("/") >= depth and fits(path, begin)):
                    yield from self._walk(entry["relationships"]["files"]["links"]["related"]["href"], path + "/",
                                          pattern)
            elif fits(path, pattern):
                hashes = (attributes.get("extra") or {}).get("hashes") or {}
                kind = next((kind for kind in ("sha256", "md5") if hashes.get(kind)), None)
                yield RemoteFile(path=path, size=int(attributes["size"]), address=entry["links"]["download"],
                                 checksum=f"{kind}:{hashes[kind]}" if kind else "")

    def _entries(self, url: str) -> list[dict[str, Any]]:
        if url not in self._listed:
            entries, following = [], url
            while following:
                page = _json(following, what=str(self))
                entries += page["data"]
                following = page["links"].get("next")
            self._listed[url] = entries
        return self._listed[url]


class Figshare(Source):
    """The files of an article on figshare or Figshare+.

    API: https://docs.figshare.com. Sizes and md5 are in the listing; there are no folders.

    Parameters
    ----------
    article
        Number of the article, as at the end of its URL.
    api
        Address of the API.
    """

    def __init__(self, *, article: int, api: str = "https://api.figshare.com/v2") -> None:
        self.article = _given(article, "article", "the number at the end of the article's URL")
        self.api = api
        self._listed: list[dict[str, Any]] = []

    def __str__(self) -> str:
        return f"figshare article {self.article}"

    def files(self, pattern: str) -> list[RemoteFile]:
        """Return the files that fit."""
        if not self._listed:
            self._listed = _json(f"{self.api}/articles/{self.article}/files?page_size=1000", what=str(self))
        return [RemoteFile(path=entry["name"], size=int(entry["size"]), address=entry["download_url"],
                           checksum=f"md5:{entry.get('computed_md5') or entry['supplied_md5']}")
                for entry in sorted(self._listed, key=lambda entry: entry["name"])
                if fits(entry["name"], pattern) and not entry.get("is_link_only")]

    def send(self, file: RemoteFile, part: PartialFile) -> None:
        """Ask for the rest over HTTP."""
        _send(file.address, part, what=f"{self}: {file.path}")


class HuggingFace(Source):
    """A data set of the Hugging Face hub, by way of huggingface_hub; who is logged in there is logged in here.

    Large files are listed with their SHA-256, small ones with the SHA-1 of a git blob.

    Parameters
    ----------
    repo
        ``<owner>/<name>`` of the data set.
    revision
        Branch, tag or commit.
    endpoint
        Address of the hub, where it is not the usual one.
    """

    def __init__(self, *, repo: str, revision: str = "main", endpoint: str | None = None) -> None:
        self.repo = _given(repo, "repo", "<owner>/<name> of the data set")
        self.revision = revision
        self.endpoint = endpoint
        self._listed: dict[tuple[str, bool], list[Any]] = {}

    def __str__(self) -> str:
        return f"https://huggingface.co/datasets/{self.repo}"

    def files(self, pattern: str) -> list[RemoteFile]:
        """Return the files that fit."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.hf_api import RepoFile

        folder = _fixed(pattern).rpartition("/")[0]
        deep = "**" in pattern or pattern.count("/") > folder.count("/") + bool(folder)
        return [RemoteFile(path=entry.path, size=entry.size,
                           checksum=f"sha256:{entry.lfs.sha256}" if entry.lfs else f"git:{entry.blob_id}",
                           address=hf_hub_url(self.repo, entry.path, repo_type="dataset", revision=self.revision,
                                              endpoint=self.endpoint))
                for entry in sorted(self._tree(folder, deep), key=lambda entry: entry.path)
                if isinstance(entry, RepoFile) and fits(entry.path, pattern)]

    def send(self, file: RemoteFile, part: PartialFile) -> None:
        """Ask for the rest over HTTP, with the token of who is logged in."""
        from huggingface_hub.utils import build_hf_headers

        _send(file.address, part, what=f"{self}: {file.path}", headers=build_hf_headers(), cure=_LOG_IN)

    def _tree(self, folder: str, deep: bool) -> list[Any]:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import EntryNotFoundError, HTTPError, RepositoryNotFoundError

        if (folder, deep) not in self._listed:
            try:
                self._listed[folder, deep] = list(HfApi(endpoint=self.endpoint).list_repo_tree(
                    self.repo, folder or None, recursive=deep, revision=self.revision, repo_type="dataset"))
            except EntryNotFoundError:
                self._listed[folder, deep] = []  # no such folder, so nothing in it
            except RepositoryNotFoundError as error:  # also where access is granted on request
                said = str(error).splitlines()[0]
                raise ValueError(f"{self}: expected to be let in, got: {said} {_LOG_IN}") from error
            except HTTPError as error:
                raise ConnectionError(f"{self}: {error}") from error
        return self._listed[folder, deep]


class S3(Source):
    """A public bucket of S3, by way of boto3 and without credentials.

    An object that was uploaded in one piece has its md5 as ETag; the ETag of the others only names their version.

    Parameters
    ----------
    bucket
        Name of the bucket.
    root
        What all keys begin with; paths and patterns leave it out.
    region
        Where the bucket is.
    endpoint
        Address of the service, where it is not the usual one.
    """

    def __init__(self, *, bucket: str, root: str = "", region: str = "us-east-1", endpoint: str | None = None) -> None:
        self.bucket = _given(bucket, "bucket", "the name of a bucket")
        self.root = root
        self.region = region
        self.endpoint = endpoint
        self._made: Any = None

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.root}".rstrip("/")

    def files(self, pattern: str) -> list[RemoteFile]:
        """Return the files that fit."""
        with self._errors(f"{self}/{pattern}"):
            pages = self._client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket,
                                                                             Prefix=self.root + _fixed(pattern))
            entries = [entry for page in pages for entry in page.get("Contents", ())]
        found = []
        for entry in entries:
            path, etag = entry["Key"].removeprefix(self.root), entry["ETag"].strip('"')
            if fits(path, pattern) and not path.endswith("/"):
                kind = "md5" if re.fullmatch("[0-9a-f]{32}", etag) else "etag"
                found.append(RemoteFile(path=path, size=entry["Size"], checksum=f"{kind}:{etag}", address=entry["Key"]))
        return found

    def send(self, file: RemoteFile, part: PartialFile) -> None:
        """Ask for the rest, of the very version that was listed."""
        with self._errors(f"{self}/{file.path}"):
            body = self._client().get_object(Bucket=self.bucket, Key=file.address, Range=f"bytes={part.position}-",
                                             IfMatch=f'"{file.checksum.partition(":")[2]}"')["Body"]
            for chunk in body.iter_chunks(_CHUNK):
                part.write(chunk)

    def _client(self) -> Any:
        if self._made is None:
            import boto3
            from botocore import UNSIGNED
            from botocore.config import Config

            self._made = boto3.client("s3", region_name=self.region, endpoint_url=self.endpoint, config=Config(
                signature_version=UNSIGNED, connect_timeout=_TIMEOUT, read_timeout=_TIMEOUT))
        return self._made

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as error:
            _refused(what, error.response["ResponseMetadata"]["HTTPStatusCode"], error)
        except BotoCoreError as error:
            raise ConnectionError(f"{what}: {error}") from error


def _given(value: Any, name: str, what: str) -> Any:
    if not value:
        raise ValueError(f"{name}: expected {what}, got nothing. Give it with download.sources.<source>.{name}=...")
    return value


def _refused(what: str, status: int, error: Exception, cure: str = "See whether it moved, and correct "
             "configs/download/<study>.yaml.") -> None:
    if status >= 500 or status in (408, 429):
        raise ConnectionError(f"{what}: HTTP status {status}") from error
    raise ValueError(f"{what}: expected to be given it, got HTTP status {status}. {cure}") from error


@contextmanager
def _web_errors(what: str, **cure: str) -> Iterator[None]:
    import requests

    try:
        yield
    except requests.HTTPError as error:
        _refused(what, getattr(error.response, "status_code", 500), error, **cure)
    except requests.RequestException as error:
        raise ConnectionError(f"{what}: {error}") from error


def _json(url: str, *, what: str) -> Any:
    import requests

    with _web_errors(what):
        answer = requests.get(url, headers=_HEADERS, timeout=_TIMEOUT)
        answer.raise_for_status()
        return answer.json()


def _send(url: str, part: PartialFile, *, what: str, headers: Mapping[str, str] | None = None, **cure: str) -> None:
    """Write the rest of what lies at `url` into `part`, from the beginning where the server sends everything."""
    from pooch import HTTPDownloader

    def begin(answer: Any, **_: object) -> None:
        if answer.status_code == 200 and part.position:
            part.restart()

    rest = {"Range": f"bytes={part.position}-"} if part.position else {}
    with _web_errors(what, **cure):
        HTTPDownloader(chunk_size=_CHUNK, timeout=_TIMEOUT, headers={**(headers or {}), **_HEADERS, **rest},
                       hooks={"response": begin})(url, part, None)

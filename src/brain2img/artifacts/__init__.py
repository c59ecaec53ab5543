"""The folders stages hand over: manifest, finished or not, predictions, reconstructions, embeddings.

A folder is *finished* when its ``manifest.json`` is there (it is written last) and the stage configuration and the
input ids in it equal those now asked for. Work happens under temporary names that are renamed at the end, so that a
killed stage never leaves something that looks whole.
"""

from brain2img.artifacts.arrays import ArrayWriter, EmbeddingCache
from brain2img.artifacts.captions import Captions
from brain2img.artifacts.checkpoints import read_torch_file
from brain2img.artifacts.content import check_content, compare_on_opening
from brain2img.artifacts.files import (
    begin_array,
    check_room,
    digest,
    file_digest,
    safe_name,
    write_array,
    write_json,
    write_rows,
    write_table,
    writing,
)
from brain2img.artifacts.folders import (
    StageFolder,
    differences,
    git_commit,
    keep_contents,
    open_folder,
    read_manifest,
    replace_folder,
    seal_holds,
    versions,
)
from brain2img.artifacts.names import below, check_name, stored_at
from brain2img.artifacts.owner import claim, release_all, waiting
from brain2img.artifacts.predictions import Predictions
from brain2img.artifacts.process import typed
from brain2img.artifacts.reading import (
    is_whole_png,
    read_array,
    read_arrays,
    read_begun,
    read_json,
    read_picture,
    read_table,
    read_tensors,
    reading,
)
from brain2img.artifacts.reconstructions import Reconstructions
from brain2img.artifacts.stored_rows import StoredRows
from brain2img.artifacts.system_errors import is_of_the_system, is_out_of_memory

__all__ = ["ArrayWriter", "Captions", "EmbeddingCache", "Predictions", "Reconstructions", "StageFolder", "StoredRows",
           "begin_array", "below", "check_content", "check_name", "check_room", "claim", "compare_on_opening",
           "differences", "digest", "file_digest", "git_commit", "is_of_the_system", "is_out_of_memory",
           "is_whole_png", "keep_contents", "open_folder",
           "read_array", "read_arrays", "read_begun", "read_json", "read_manifest", "read_picture", "read_table",
           "read_tensors", "read_torch_file", "reading", "release_all", "replace_folder", "safe_name", "seal_holds",
           "stored_at", "typed", "versions", "waiting", "write_array", "write_json", "write_rows", "write_table",
           "writing"]

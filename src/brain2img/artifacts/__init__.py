"""The folders stages hand over: manifest, finished or not, predictions, reconstructions, embeddings.

A folder is *finished* when its ``manifest.json`` is there (it is written last) and the stage configuration and the
input ids in it equal those now asked for. Work happens under temporary names that are renamed at the end, so that a
killed stage never leaves something that looks whole.
"""

from brain2img.artifacts.arrays import ArrayWriter, EmbeddingCache
from brain2img.artifacts.captions import Captions
from brain2img.artifacts.checkpoints import read_torch_file
from brain2img.artifacts.files import (
    StoredRows,
    begin_array,
    check_room,
    digest,
    file_digest,
    read_array,
    safe_name,
    write_array,
    write_json,
    write_rows,
    write_table,
    writing,
)
from brain2img.artifacts.folders import StageFolder, differences, git_commit, open_folder, read_manifest, versions
from brain2img.artifacts.predictions import Predictions
from brain2img.artifacts.reconstructions import Reconstructions
from brain2img.artifacts.system_errors import is_of_the_system, is_out_of_memory

__all__ = [
    "ArrayWriter",
    "Captions",
    "EmbeddingCache",
    "Predictions",
    "Reconstructions",
    "StageFolder",
    "StoredRows",
    "begin_array",
    "check_room",
    "differences",
    "digest",
    "file_digest",
    "git_commit",
    "is_of_the_system",
    "is_out_of_memory",
    "open_folder",
    "read_array",
    "read_manifest",
    "read_torch_file",
    "safe_name",
    "versions",
    "write_array",
    "write_json",
    "write_rows",
    "write_table",
    "writing",
]

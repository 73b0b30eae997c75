"""The only door to weight files: bytes from outside are hostile, and writes are whole or not at all.

Layout of a safetensors file (https://huggingface.co/docs/safetensors):

    8 bytes            length N of the header, little-endian
    N bytes            JSON: {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...,
                              "__metadata__": {"text": "text"}}
    the rest           the tensors' bytes, one after the other, without a gap
"""

from lorimer.formats.safe_io.dtypes import DTYPES
from lorimer.formats.safe_io.gguf import GgufFile, read_gguf, read_gguf_values
from lorimer.formats.safe_io.packaged import read_packaged_tensors
from lorimer.formats.safe_io.reading import (
    PICKLE_SUFFIXES,
    Header,
    TensorInfo,
    WeightFile,
    open_safetensors,
    parse_json,
    pieces_of,
    read_json,
    read_safetensors,
    read_safetensors_header,
)
from lorimer.formats.safe_io.writing import (
    json_bytes,
    publish_folder,
    remove_temporaries,
    safetensors_bytes,
    write_bytes_atomic,
    write_files_atomic,
    write_json,
    write_safetensors,
    write_safetensors_streamed,
)

__all__ = [
    "DTYPES",
    "PICKLE_SUFFIXES",
    "GgufFile",
    "Header",
    "TensorInfo",
    "WeightFile",
    "json_bytes",
    "open_safetensors",
    "parse_json",
    "pieces_of",
    "publish_folder",
    "read_gguf",
    "read_gguf_values",
    "read_json",
    "read_packaged_tensors",
    "read_safetensors",
    "read_safetensors_header",
    "remove_temporaries",
    "safetensors_bytes",
    "write_bytes_atomic",
    "write_files_atomic",
    "write_json",
    "write_safetensors",
    "write_safetensors_streamed",
]

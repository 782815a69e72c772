"""Lists the arrays of a safetensors file."""

import json
from pathlib import Path
from typing import Any

import pickles

_FORMAT = "medadv_jax"  # as in read.py
_MAX_HEADER = 1 << 25  # bytes; a ResNet50's has 30,000
_DTYPES = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "bfloat16", "BOOL": "|b1"},
    **{"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1"},
    **{"U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1"},
}


def list_safetensors(path: Path) -> dict[str, Any]:
    """Returns the listing; see `__main__.py`.

    The library checks first that the arrays fill the file exactly and do not overlap.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MAX_HEADER:
            raise pickles.WeightsFileError(f"its header would have {length} bytes: damaged")
        header = json.loads(file.read(length))
    _check(path)
    metadata = header.pop("__metadata__", None) or {}
    if not header:
        raise pickles.WeightsFileError("it holds no array")
    arrays = {
        name: [
            _DTYPES.get(entry["dtype"], entry["dtype"]),
            entry["shape"],
            None,
            8 + length + entry["data_offsets"][0],
        ]
        for name, entry in header.items()
    }
    layout = _FORMAT if metadata.get("format") == _FORMAT else "torchvision"
    return {"layout": layout, "metadata": metadata, "arrays": arrays}


def _check(path: Path) -> None:
    import safetensors

    try:
        with safetensors.safe_open(path, framework="np"):
            pass
    except safetensors.SafetensorError as error:
        if "not fully covered" in str(error):
            raise pickles.WeightsFileError(
                "its arrays do not fill the file: it is cut short"
            ) from error
        raise

"""The fingerprint of what decides a passage's vector."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

_BLOCK = 64 * 1024
_BLOCKS = 256  # 16 MiB a file at most: a 1 GB model is fingerprinted in milliseconds
_SMALL_FILES = ("tokenizer.json", "tokenizer.model", "vocab.txt")


def document_fingerprint(folder: Path, settings: Mapping[str, object]) -> str:
    """Hash a model folder's weights and tokenizer together with settings that change passage vectors.

    Weight files count by name, size and up to 256 evenly spaced blocks of 64 KiB: training moves every weight, so
    that a sample tells two models apart.

    Args:
        folder: The model folder, with its heads in subfolders.
        settings: JSON values.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.sha256(json.dumps(dict(settings), sort_keys=True, ensure_ascii=False).encode())
    patterns = ("*.safetensors", "*/*.safetensors", "*.bin", "*/*.bin", *_SMALL_FILES)
    files = {path.relative_to(folder).as_posix(): path for pattern in patterns for path in folder.glob(pattern)}
    for name in sorted(files):
        size = files[name].stat().st_size
        digest.update(f"{name}:{size}".encode())
        count = max(1, min(_BLOCKS, -(-size // _BLOCK)))
        with files[name].open("rb") as file:
            for index in range(count):
                file.seek(0 if count == 1 else index * max(size - _BLOCK, 0) // (count - 1))
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()[:32]

"""The fingerprint of what decides a passage's vector."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

_BLOCK = 64 * 1024
_BLOCKS = 256  # 16 MiB a file at most: a 1 GB model is fingerprinted in milliseconds
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "sentencepiece.bpe.model", "vocab.txt")


def document_fingerprint(folder: Path, settings: Mapping[str, object], parts: Iterable[str] = ("",)) -> str:
    """Hash a model folder's weights and tokenizer together with settings that change passage vectors.

    Weight files count by name, size and up to 256 evenly spaced blocks of 64 KiB: training moves every weight, so
    that a sample tells two models apart. Pickled weights count only where nothing else is: a copy from the hub's web
    page has them beside the safetensors, a download of ours has not, and both are the same model.

    Args:
        folder: The model folder.
        settings: JSON values.
        parts: Subfolders with weights, ``""`` for the folder itself.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.sha256(json.dumps(dict(settings), sort_keys=True, ensure_ascii=False).encode())
    for path in [path for part in parts for path in _files(folder / part)]:
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}:{size}".encode())
        count = max(1, min(_BLOCKS, -(-size // _BLOCK)))
        with path.open("rb") as file:
            for index in range(count):
                file.seek(0 if count == 1 else index * max(size - _BLOCK, 0) // (count - 1))
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()[:32]


def _files(part: Path) -> Iterator[Path]:
    yield from sorted(part.glob("*.safetensors")) or sorted(part.glob("*.bin"))
    # The fast form holds all that the others hold.
    yield from [part / name for name in _TOKENIZER_FILES if (part / name).is_file()][:1]

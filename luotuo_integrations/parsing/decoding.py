"""Bytes of Chinese text files to text: Unicode, GB18030, Big5."""

import codecs
import logging
import re

from luotuo_integrations.errors import DocumentError

logger = logging.getLogger(__name__)

# UTF-32 first: its mark begins with that of UTF-16.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_HTML_CHARSET = re.compile(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
_CONTROL = re.compile("[\x01-\x08\x0e-\x1a\x1c-\x1f]")
# Kana, Greek, Cyrillic, box drawing, private area
_ODD = re.compile("[\u0370-\u04ff\u2500-\u257f\u3040-\u30ff\ue000-\uf8ff]")
_ODD_SHARE = 0.1


def decode(data: bytes, encoding: str | None = None) -> str:
    """Decode the bytes of a text file.

    Args:
        data: The bytes.
        encoding: Their encoding. None takes the byte order mark, else UTF-8, else what an HTML page names, else
            GB18030 (which includes GBK and GB2312), else Big5 where GB18030 makes no sense.

    Returns:
        The text, its lines ended with a line feed, without a byte order mark.

    Raises:
        DocumentError: If the bytes are not text in that encoding; the message names the offset of the first bad byte.
    """
    marked = next((name for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark)), None)
    if encoding is not None or marked is not None:
        text = _decoded(data, encoding or marked or "")
    elif b"\0" in data:
        msg = f"byte {data.index(0)} is NUL: it is no text, or UTF-16 without a mark; then pass encoding='utf-16-le'"
        raise DocumentError(msg)
    else:
        text = _detected(data)
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text or len(_CONTROL.findall(text)) > 0.01 * len(text):
        msg = "it has control characters: it is no text, or the encoding is wrong; then pass encoding='...'"
        raise DocumentError(msg)
    return text


def _decoded(data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except LookupError as error:
        msg = f"encoding={encoding!r} is unknown: give for instance 'utf-8', 'gb18030', 'big5' or 'utf-16'"
        raise DocumentError(msg) from error
    except UnicodeDecodeError as error:
        msg = f"byte {error.start} is not {encoding}: convert it to UTF-8, or pass its encoding, as encoding='big5'"
        raise DocumentError(msg) from error


def _detected(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        utf8_error = error
    # A UTF-8 file with a few bad bytes is often valid GB18030, and then reads as nonsense.
    lossy = data.decode("utf-8", errors="replace")
    good = sum(character > "\x7f" for character in lossy) - (bad := lossy.count("\ufffd"))
    if good > 10 * bad:
        msg = f"byte {utf8_error.start} is not UTF-8, though the rest is: repair it, or pass encoding='gb18030'"
        raise DocumentError(msg) from utf8_error
    charset = _HTML_CHARSET.search(data[:4096])
    name = charset[1].decode("ascii").lower() if charset else "gb18030"
    if name in ("gb2312", "gbk", "utf-8", "utf8"):
        name = "gb18030"
    try:
        text = data.decode(name)
    except (UnicodeDecodeError, LookupError) as error:
        at = f", byte {error.start}" if isinstance(error, UnicodeDecodeError) else ""
        msg = (
            f"it is neither UTF-8 (byte {utf8_error.start}) nor {name}{at}: convert it to UTF-8, "
            "or pass its encoding, as encoding='big5'"
        )
        raise DocumentError(msg) from error
    return _big5(data, text) if name == "gb18030" else text


def _big5(data: bytes, gb18030_text: str) -> str:
    """The text, read again as Big5 where that makes more sense."""
    if _oddity(gb18030_text) < _ODD_SHARE:
        return gb18030_text
    try:
        text = data.decode("big5hkscs")
    except UnicodeDecodeError:
        return gb18030_text
    if _oddity(text) >= _oddity(gb18030_text) / 4:
        return gb18030_text
    logger.warning("A file was read as Big5, because it makes no sense as GB18030; pass encoding= to decide")
    return text


def _oddity(text: str) -> float:
    """Share of the characters beyond ASCII that are rare in Chinese but frequent in Big5 text read as GB18030."""
    return len(_ODD.findall(text)) / max(1, sum(character > "\x7f" for character in text))

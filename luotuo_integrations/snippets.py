"""Snippets: the part of a text that a query's words meet in, with these words marked as the text spells them."""

from bisect import bisect_left

from luotuo_integrations.chinese_tokens import KeywordTokenizer, Token

Span = tuple[int, int]


def matched_spans(text: str, query: str, tokenizer: KeywordTokenizer) -> list[Span]:
    """Where a text holds tokens of a query.

    Args:
        text: Any text.
        query: Any text.
        tokenizer: What splits both; that of the search, so that what is marked is what was found.

    Returns:
        Pairs (start, end), ascending; those that overlap or touch are one.

    Raises:
        TypeError: If the text or the query is not a string.
    """
    return _joined(_matches(text, query, tokenizer))


def snippet(
    text: str, query: str, tokenizer: KeywordTokenizer, width: int = 80, marks: tuple[str, str] = ("【", "】")
) -> str:
    """Cut a text to the stretch that holds most of a query's tokens, and mark them.

    A stretch with more different tokens goes before one with more repetitions; of equals the first is taken, with as
    much before what is marked as behind. A text that holds none of the tokens is cut to its beginning.

    Args:
        text: Any text.
        query: Any text.
        tokenizer: As for ``matched_spans``.
        width: The most characters of the text to show, from 1; marks and "…", which stands where the text was cut,
            are not counted.
        marks: What stands before and behind each match.

    Returns:
        The stretch, spelt as in the text.

    Raises:
        TypeError: If the text or the query is not a string.
        ValueError: If ``width`` is below 1.

    Example:
        >>> snippet("新員工的試用期為三個月。", "试用期多久", KeywordTokenizer())
        '新員工的【試用期】為三個月。'
    """
    if width < 1:
        msg = f"width={width} must be 1 or more"
        raise ValueError(msg)
    matches = _matches(text, query, tokenizer)
    start = _best_start(matches, width, len(text))
    end = min(len(text), start + width)
    pieces, done = ["…" if start else ""], start
    for first, last in _joined(matches):
        first, last = max(first, start), min(last, end)
        if first < last:
            pieces += [text[done:first], marks[0], text[first:last], marks[1]]
            done = last
    return "".join([*pieces, text[done:end], "…" if end < len(text) else ""])


def _matches(text: str, query: str, tokenizer: KeywordTokenizer) -> list[Token]:
    """The text's tokens that are the query's too, by their start."""
    wanted = set(tokenizer(query))
    return sorted((token for token in tokenizer.tokens(text) if token[0] in wanted), key=lambda token: token[1:])


def _joined(matches: list[Token]) -> list[Span]:
    spans: list[Span] = []
    for _, start, end in matches:
        if spans and start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
        else:
            spans.append((start, end))
    return spans


def _best_start(matches: list[Token], width: int, length: int) -> int:
    """Where the stretch begins that holds the most matches."""
    starts = [start for _, start, _ in matches]
    most, best = (0, 0), (0, min(width, length))
    for position, start in enumerate(starts):
        near = matches[position : bisect_left(starts, start + width)]
        inside = [(token, end) for token, _, end in near if end <= start + width]
        held = (len({token for token, _ in inside}), len(inside))
        if position == 0 or held > most:
            most, best = held, (start, max((end for _, end in inside), default=start + width))
    first, last = best
    spare = width - (last - first)
    return max(0, min(first - spare // 2, length - width))

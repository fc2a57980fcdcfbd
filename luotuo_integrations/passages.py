"""Passages as texts: without white space, without the headings above them, and in pieces."""

from itertools import pairwise

from luotuo_integrations.parsing.outline import blocks, sentence_cuts


def squeezed(text: str) -> str:
    """A text without white space, so that line breaks and indents make no difference."""
    return "".join(text.split())


def body_of(text: str) -> str:
    """A passage below the headings that it begins with; the whole passage where there is nothing below them."""
    start = next((block.start for block in blocks(text) if block.kind != "heading"), 0)
    return text[start:].strip()


def sentences_of(text: str) -> list[str]:
    """Its sentences in order, stripped; a line break ends one too."""
    sentences = []
    for line in text.splitlines():
        cuts = [0, *(cut for cut, _ in sentence_cuts(line, 0, len(line))), len(line)]
        sentences += [line[start:stop].strip() for start, stop in pairwise(cuts)]
    return [sentence for sentence in sentences if sentence]

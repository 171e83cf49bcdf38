"""English sentences from the language reference that Python carries (pydoc_data, PSF licence), read at run time."""

from __future__ import annotations

import hashlib
import re

SHORTEST, LONGEST = 4, 40  # words

_MARKUP = re.compile(r"[*`\"“”<>=|\\{}\[\]_]|::|\(see |https?:|\bPEP \d")
_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


def sentences(count: int, skip: int = 0) -> list[str]:
    """`count` distinct sentences of 4 to 40 words, after the first `skip`; their order is that of their hashes.

    Which sentences there are depends on the version of Python, nothing else. Raises ValueError if there are too few.
    """
    from pydoc_data.topics import topics

    found = {sentence for text in topics.values() for sentence in _sentences_of(text)}
    ordered = sorted(found, key=lambda sentence: hashlib.sha256(sentence.encode()).digest())
    chosen = ordered[skip : skip + count]
    if len(chosen) < count:
        raise ValueError(f"the language reference has {len(ordered)} usable sentences, {skip + count} are wanted")
    return chosen


def _sentences_of(text: str) -> list[str]:
    """Whole sentences of prose; code, grammar, headings and lists start elsewhere than in column 0 or have markup."""
    kept = []
    for paragraph in re.split(r"\n\s*\n", text):
        if not re.match(r"[A-Z][a-z]*\b", paragraph) or re.search(r"\n\s", paragraph):
            continue
        for sentence in _END.split(" ".join(paragraph.split())):
            prose = re.match(r"[A-Z].*[.!?]$", sentence) and not _MARKUP.search(sentence)
            if prose and SHORTEST <= len(sentence.split()) <= LONGEST:
                kept.append(sentence)
    return kept

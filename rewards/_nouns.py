"""What an item's questions are about: phrases of its metadata, or of its prompt by spaCy or by patterns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from threading import Lock
from typing import Any

from rewardzoo.errors import ItemError

MODEL = "en_core_web_sm"
"""The spaCy model that T2I-CompBench uses, in its version 3.5.0."""

INSTALL = f"pip install 'rewardzoo[nouns]' && python -m spacy download {MODEL}"

_lock = Lock()


def read_phrases(metadata: Mapping[str, Any], key: str, most: int) -> tuple[str, ...] | None:
    """Return the phrases under `key` of an item's metadata; None where there is none, or null.

    Raises:
        ItemError: they are not a list of texts, one is blank, or there are more than `most`.
    """
    found = metadata.get(key)
    if found is None:
        return None
    if not isinstance(found, list | tuple) or not all(isinstance(phrase, str) for phrase in found):
        raise ItemError(f'metadata["{key}"] must be a list of texts, got {found!r:.200}')
    if not all(phrase.strip() for phrase in found):
        raise ItemError(f'metadata["{key}"] has a blank phrase: {list(found)!r:.200}')
    if len(found) > most:
        raise ItemError(f'metadata["{key}"] has {len(found)} phrases, at most {most} are asked')
    return tuple(found)


def matched_phrases(prompt: str, patterns: Sequence[str]) -> tuple[str, ...]:
    """Return what each pattern finds in a prompt, its groups joined by a blank, in the patterns' order.

    Case does not count. A prompt in which nothing is found is one phrase.
    """
    found = [re.finditer(pattern, prompt, re.IGNORECASE) for pattern in patterns]
    phrases = tuple(" ".join(match.groups()) for matches in found for match in matches)
    return phrases or (prompt,)


@lru_cache(maxsize=4096)
def noun_phrases(prompt: str) -> tuple[str, ...]:
    """Return the noun phrases of an English prompt in their order, as spaCy finds them. Thread-safe.

    Raises:
        ItemError: spaCy or its model is not installed.
    """
    with _lock:
        return tuple(chunk.text for chunk in _parser()(prompt).noun_chunks)


@cache
def _parser() -> Any:
    try:
        import spacy  # type: ignore[import-not-found, unused-ignore]

        return spacy.load(MODEL)
    except (ImportError, OSError) as error:  # OSError: the model is missing, or made for another spaCy
        raise ItemError(f"spaCy cannot find the noun phrases here ({error})") from error

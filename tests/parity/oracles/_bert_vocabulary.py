"""A small vocabulary of BERT's kind for the oracles that ask questions."""

from __future__ import annotations

import string

_WORDS = (
    "yes no a an the of and on in at with that red green blue yellow brown black white circle square star cat"
    " dog horse house town sea light photo painting moon sign glass table old man woman queen wood long left"
    " right top side first second line"
)
_ENDINGS = ("##s", "##ing", "##ed", "##er", "##ly", "##en", "##tion")


def vocabulary() -> list[str]:
    """Return word pieces: BERT's special tokens, letters, digits, signs, some words and endings."""
    signs = string.ascii_lowercase + string.digits + string.punctuation + "“”\u2019一只红色帽子的猫🐱αελнרי"
    inner = (f"##{sign}" for sign in string.ascii_lowercase + string.digits + "ελнר")
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    return list(dict.fromkeys((*special, *signs, *_WORDS.split(), *inner, *_ENDINGS)))

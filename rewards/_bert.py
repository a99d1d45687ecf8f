"""BERT's uncased word pieces, as several rewards read text with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def word_pieces(vocabulary: Path, max_tokens: int | None = None) -> Tokenizer:
    """Return the tokenizer over `vocabulary`, one piece a line: it pads on the right to the longest text.

    `max_tokens` is where it cuts, [CLS] and [SEP] included.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    own = Tokenizer(models.WordPiece.from_file(str(vocabulary), unk_token="[UNK]"))
    ids = own.get_vocab()
    own.add_special_tokens([token for token in _SPECIAL if token in ids])
    own.normalizer = normalizers.BertNormalizer(lowercase=True)
    own.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    own.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    if max_tokens is not None:
        own.enable_truncation(max_tokens)
    own.enable_padding(pad_id=ids["[PAD]"], pad_token="[PAD]")
    return own

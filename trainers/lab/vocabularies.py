"""Tokenizers of the lab's words, in the forms that the models of the rewards read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rewardzoo.trainers.lab.prompts import VOCABULARY

JANUS_SPECIAL = (
    "<pad>",
    "<unk>",
    "<s>",
    "</s>",
    "<image_placeholder>",
    "<begin_of_image>",
    "<end_of_image>",
)


def janus_tokenizer() -> PreTrainedTokenizerFast:
    """A word tokenizer with the special tokens of Janus, which pads on the left and begins with `<s>`."""
    words = [*JANUS_SPECIAL, *VOCABULARY]
    own = _word_tokenizer(words)
    own.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", words.index("<s>"))]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=own,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={
            "image_token": "<image_placeholder>",
            "boi_token": "<begin_of_image>",
            "eoi_token": "<end_of_image>",
        },
        padding_side="left",
    )


def _word_tokenizer(words: Sequence[str]) -> Tokenizer:
    own = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    own.normalizer = normalizers.Lowercase()
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    return own


def write_clip_tokenizer(path: Path, length: int) -> int:
    """Write a word tokenizer in CLIP's form, the end token's id the highest; return how many words it has."""
    words = ["<pad>", "<unk>", "<start>", *VOCABULARY, "<end>"]
    own = _word_tokenizer(words)
    own.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>",
        special_tokens=[(word, words.index(word)) for word in ("<start>", "<end>")],
    )
    own.enable_truncation(length)
    own.enable_padding(length=length, pad_id=0, pad_token="<pad>")
    own.save(str(path))
    return len(words)


def write_bert_vocabulary(path: Path, more: Sequence[str] = ()) -> int:
    """Write a word-piece vocabulary of the lab's words and `more`; return its size."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *VOCABULARY, *more]
    path.write_text("\n".join(words) + "\n")
    return len(words)

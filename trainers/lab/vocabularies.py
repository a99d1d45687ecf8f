"""Tokenizers of the lab's words, in the forms that the models of the rewards read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rewardzoo.rewards._clip_t5 import DIALOGUE, IMAGE, SENTINELS
from rewardzoo.rewards._critic import alignment_question
from rewardzoo.rewards._reflection import reflection_question
from rewardzoo.rewards.hpsv3 import INSTRUCTION
from rewardzoo.rewards.parm import POTENTIAL_QUESTION, clarity_question
from rewardzoo.rewards.vqascore import RECIPES
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


QWEN_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|Reward|>",
)
_ANSWERS = ("yes", "no", "not", "there", "1", "2", "3", "4", "system", "user", "assistant", ":", ".")


def qwen_tokenizer() -> PreTrainedTokenizerFast:
    """A word tokenizer with the special tokens of Qwen2-VL and HPSv3.

    What `hpsv3`, `orm` and `parm` say around every prompt is one token a stretch: spelled out, a rubric would
    be hundreds.
    """
    own = _word_tokenizer(["<unk>", *VOCABULARY, *_ANSWERS])
    own.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in QWEN_SPECIAL])
    own.add_tokens([AddedToken(text, normalized=False) for text in ("Yes", "No", *fixed_stretches())])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=own, pad_token="<|endoftext|>", unk_token="<unk>", eos_token="<|im_end|>"
    )


def fixed_stretches() -> list[str]:
    """What stands around the prompt in the dialogues of `hpsv3`, `orm` and `parm`, in the longest pieces."""
    prompt = "{text_prompt}"
    asked = [INSTRUCTION, alignment_question(prompt), clarity_question(prompt), reflection_question(prompt)]
    pieces = [piece for text in asked for part in text.split(prompt) for piece in part.split("<|Reward|>")]
    turns = [
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>\n<|im_start|>user\n",
    ]
    return list(dict.fromkeys([*turns, *pieces, POTENTIAL_QUESTION]))


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


def write_t5_vocabulary(path: Path) -> int:
    """Write a sentencepiece vocabulary of the lab's words; return its size, T5's sentinels included.

    What CLIP-FlanT5 says around every prompt is one piece a stretch.
    """
    from sentencepiece import sentencepiece_model_pb2  # type: ignore[import-untyped]

    dialogue = DIALOGUE.format(image=IMAGE, question=RECIPES["vqascore/clip-flant5"].question)
    before, behind = dialogue.split(IMAGE)
    lead, tail = behind.split("{}")
    model = sentencepiece_model_pb2.ModelProto()
    kinds = model.SentencePiece
    pieces = [("<pad>", kinds.CONTROL), ("</s>", kinds.CONTROL), ("<unk>", kinds.UNKNOWN)]
    stretches = ("\u2581" + before.strip(" "), "\u2581" + lead, tail.strip(" "))
    pieces += [(text.replace(" ", "\u2581"), kinds.USER_DEFINED) for text in stretches]
    words = [*VOCABULARY, "Yes", "No", "yes", "no"]
    # Right behind a stretch a word has no space in front.
    pieces += [(start + word, kinds.NORMAL) for start in ("\u2581", "") for word in words]
    pieces.append(("\u2581", kinds.NORMAL))
    for text, kind in pieces:
        model.pieces.add(piece=text, type=kind, score=-5.0 if text == "\u2581" else 0.0)
    model.trainer_spec.model_type = sentencepiece_model_pb2.TrainerSpec.UNIGRAM
    model.trainer_spec.pad_id, model.trainer_spec.eos_id, model.trainer_spec.unk_id = 0, 1, 2
    model.trainer_spec.bos_id = -1
    model.trainer_spec.vocab_size = len(pieces)
    model.normalizer_spec.name = "identity"
    path.write_bytes(model.SerializeToString())
    return len(pieces) + SENTINELS

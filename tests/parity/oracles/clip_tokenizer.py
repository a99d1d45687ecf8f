"""A small tokenizer of CLIP's kind: the first 400 merges of OpenAI's, through `transformers`.

    ENV/bin/python tests/parity/oracles/clip_tokenizer.py    (the environment of clipscore.py)

Writes fixtures/_shared/clip_tokenizer: vocab.json, merges.txt, tokenizer.json and tokenizer_config.json. The
merges are those of openai/CLIP (MIT), `clip/bpe_simple_vocab_16e6.txt.gz`.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

from _clip import TOKENIZER
from _oracle import mend_torchvision

MERGES = 400


def main() -> None:
    """Write the tokenizer's files."""
    here = Path(__file__).resolve().parent
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != here]
    mend_torchvision()
    import clip
    from clip.simple_tokenizer import bytes_to_unicode

    packed = Path(clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    merges = gzip.decompress(packed.read_bytes()).decode().split("\n")[1 : 1 + MERGES]
    signs = list(bytes_to_unicode().values())
    words = [*signs, *(sign + "</w>" for sign in signs), *(merge.replace(" ", "") for merge in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    TOKENIZER.mkdir(parents=True, exist_ok=True)
    (TOKENIZER / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (TOKENIZER / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    stated = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    (TOKENIZER / "tokenizer_config.json").write_text(json.dumps(stated, indent=1))
    from transformers import CLIPTokenizerFast

    own = CLIPTokenizerFast.from_pretrained(TOKENIZER)
    packed_form = json.loads(own.backend_tokenizer.to_str())
    # As on the hub, and as old releases of `tokenizers` read it.
    packed_form["model"]["merges"] = [" ".join(pair) for pair in packed_form["model"]["merges"]]
    (TOKENIZER / "tokenizer.json").write_text(json.dumps(packed_form, ensure_ascii=False), encoding="utf-8")
    print(len(words), own("a red circle")["input_ids"])


if __name__ == "__main__":
    main()

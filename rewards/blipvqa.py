"""BLIP-VQA: T2I-CompBench's attribute binding. BLIP is asked for each noun phrase; the score is the product.

Paper: arXiv 2307.06350. Source of the recipe: Karine-Huang/T2I-CompBench, `BLIPvqa_eval`. Runs on the BLIP
classes of `transformers`; `_blip.rename_upstream` maps the released checkpoint's keys onto them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from PIL import Image
from torch import Tensor

from rewardzoo.errors import ItemError
from rewardzoo.rewards._bert import word_pieces
from rewardzoo.rewards._blip import mend_cross_attention, rename_upstream, resize_positions
from rewardzoo.rewards._images import normalize, to_tensor
from rewardzoo.rewards._model import Batch, Outcome, RewardModel, Score
from rewardzoo.rewards._nouns import INSTALL, matched_phrases, noun_phrases, read_phrases
from rewardzoo.rewards._spec import HubFile, PackagedFile, RewardSpec, Source, Variant, WebFile
from rewardzoo.rewards._weights import load_strictly, read_checkpoint

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import BlipForQuestionAnswering

_ANSWERS = (30522, 2748, 2053)  # upstream's token ids: the decoder's first, "yes", "no"
_MAX_TOKENS, _MAX_WORDS = 35, 50  # upstream cuts questions here
_MAX_PHRASES = 8
_NOT_ASKED = frozenset({"top", "the side", "the left", "the right"})
_ROUNDED = "blipvqa/t2i-compbench-rounded"

# The conversions on the hub (Salesforce/blip-vqa-*) were made for 384 pixels: their position embeddings
# are interpolated from this file's, so they give other scores.
_FILES: Mapping[str, Source] = {
    "checkpoint": WebFile(
        "https://storage.googleapis.com/sfr-vision-language-research/BLIP/models/"
        "model_base_vqa_capfilt_large.pth",
        "7a7d546209f1ccfa8b3cd3a0138c53e0d1e95e4a4bc280bef8f67e20fe4925ae",
    ),
    "vocabulary": HubFile(
        "google-bert/bert-base-uncased",
        "vocab.txt",
        "86b5e0934494bd15c9632b12f734a8a67f723594",
        "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    ),
}

_COUNT = "(?:an?|one|two|three|four)"
_THING = r"\w+ (?:circle|square|triangle|cross)(?:e?s)?"
_NAMED = f"(?:{_COUNT}|the) {_THING}"
_RELATION = "(?:to the )?(?:left|right) of|above|over|below|under"
MINI_CONFIG: Mapping[str, Any] = {
    "vision": {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 8,
    },
    "text": {
        "vocab_size": 51,
        "hidden_size": 128,
        "encoder_hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "initializer_range": 0.06,
    },
    "answers": (49, 47, 48),
    "phrases": (
        rf"\b({_COUNT} {_THING})\b",
        # Without taking it: the second of two things may stand in a relation to a third.
        rf"(?=\b({_NAMED}),?(?: which)?(?: is| are)? ({_RELATION}) ({_NAMED})\b)",
    ),
}
"""What the mini changes of the released architecture, the ids of its answers, and how it finds phrases.

It asks about relations too: pictures of the lab can be wrong in nothing else.
"""


class BlipVQA(RewardModel):
    """T2I-CompBench's BLIP-VQA: the product of P(yes) over the prompt's noun phrases.

    The phrases are `metadata["noun_phrases"]`, else spaCy's; the mini's are those that its patterns find. A
    prompt without any scores 1. Details have P(yes) by phrase under "questions".
    """

    spec = RewardSpec(
        name="blipvqa",
        title="BLIP-VQA (T2I-CompBench)",
        paper="arXiv:2307.06350",
        code_license="MIT",
        score_range=(0.0, 1.0),
        max_batch=16,  # up to eight questions an item
        variants=(
            Variant("t2i-compbench", "blipvqa/t2i-compbench", _FILES, "BSD-3-Clause"),
            Variant("t2i-compbench-rounded", _ROUNDED, _FILES, "BSD-3-Clause", quirk=True),
            Variant(
                "mini",
                recipe="blipvqa/t2i-compbench",
                files={
                    "checkpoint": PackagedFile("minis/blipvqa/model.safetensors"),
                    "vocabulary": PackagedFile("minis/blipvqa/vocab.txt"),
                },
                weights_license="Apache-2.0",
                config=MINI_CONFIG,
            ),
        ),
    )

    def __init__(self, variant: Variant, net: BlipForQuestionAnswering, tokenizer: Tokenizer) -> None:
        super().__init__(variant, net)
        self.tokenizer = tokenizer
        self.encoder_id = tokenizer.get_vocab_size() + 1  # upstream adds [DEC] and [ENC] to the vocabulary
        self.image_size = int(cast(Any, net.config).vision_config.image_size)
        self.rounded = variant.recipe == _ROUNDED
        self.start_id, *self.answer_ids = cast(Sequence[int], variant.config.get("answers", _ANSWERS))
        self.patterns = cast(Sequence[str] | None, variant.config.get("phrases"))

    @classmethod
    def load(cls, variant: Variant, files: Mapping[str, Path]) -> Self:
        """Read upstream's `{"model": …}`, or weights named as `transformers` does."""
        from transformers.initialization import no_init_weights

        with no_init_weights():
            net = build(variant.config)
        load_strictly(net, rename(read_checkpoint(files["checkpoint"]), net), files["checkpoint"])
        return cls(variant, net, word_pieces(files["vocabulary"], _MAX_TOKENS))

    def prepare_image(self, image: Image.Image) -> Tensor:
        """Squash to the square of S pixels and normalise: (3, S, S)."""
        square = (self.image_size, self.image_size)
        return normalize(to_tensor(image.resize(square, Image.Resampling.BICUBIC)))

    def prepare_prompt(self, prompt: str, metadata: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the phrases to ask for: at most eight."""
        given = read_phrases(metadata, "noun_phrases", _MAX_PHRASES)
        if given is not None:
            return given
        if self.patterns is not None:
            return matched_phrases(prompt, self.patterns)[:_MAX_PHRASES]
        try:
            found = noun_phrases(prompt)
        except ItemError as error:
            raise ItemError(
                'give the prompt\'s noun phrases as metadata={"noun_phrases": ["a red car", …]}, or install '
                f"spaCy where the reward runs: {INSTALL}. {error}"
            ) from error
        return tuple(phrase for phrase in found if phrase not in _NOT_ASKED)[:_MAX_PHRASES]

    def collate(
        self, images: Sequence[Any], image_index: Sequence[int], asked: Sequence[Any]
    ) -> dict[str, Tensor]:
        """Flatten the questions, each once an image: `slots` (B, 8) are rows of them, or Q for none."""
        rows: dict[tuple[int, str], int] = {}
        items = [
            [rows.setdefault((image, question(phrase)), len(rows)) for phrase in phrases]
            for image, phrases in zip(image_index, asked, strict=True)
        ]
        encoded = self.tokenizer.encode_batch([text for _, text in rows])
        return {
            "pixel_values": torch.stack(list(images)),
            "input_ids": torch.tensor([[self.encoder_id, *e.ids[1:]] for e in encoded], dtype=torch.long),
            "attention_mask": torch.tensor([e.attention_mask for e in encoded], dtype=torch.long),
            "asked_of": torch.tensor([image for image, _ in rows], dtype=torch.long),
            "slots": torch.tensor([(item + [len(rows)] * _MAX_PHRASES)[:_MAX_PHRASES] for item in items]),
        }

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Product of P(yes) over an item's questions, (B,) in [0, 1]; differentiable in the pixels.

        The rounded recipe rounds in `evaluate`: a rounded score has no gradient.
        """
        return product(self.answer(inputs), inputs["slots"])

    def answer(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """P(yes) of P(yes) + P(no) for each question: (Q,)."""
        pair = self.logits(inputs)
        # Of these two alone it is the same ratio as after upstream's softmax over the whole vocabulary.
        yes: Tensor = pair.to(torch.promote_types(pair.dtype, torch.float32)).softmax(-1)[:, 0]
        return yes

    def logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits of "yes" and "no" for each question: (Q, 2)."""
        net = cast(Any, self.net)
        pixels, mask = inputs["pixel_values"], inputs["attention_mask"]
        if not len(mask):
            return pixels.flatten()[:0].view(0, 2)
        patches = net.vision_model(pixels).last_hidden_state[inputs["asked_of"]]
        questions = net.text_encoder(
            input_ids=inputs["input_ids"],
            attention_mask=mask,
            encoder_hidden_states=patches,
            encoder_attention_mask=torch.ones(patches.shape[:2], dtype=torch.long, device=patches.device),
            is_decoder=False,
        ).last_hidden_state
        said = net.text_decoder(
            input_ids=torch.full((len(mask), 1), self.start_id, device=mask.device),
            encoder_hidden_states=questions,
            encoder_attention_mask=mask,
            use_cache=False,
        )
        pair: Tensor = said.logits[:, 0, self.answer_ids]
        return pair

    def evaluate(self, batch: Batch) -> Sequence[Outcome]:
        """Score a batch; the rounded recipe rounds to four decimals each answer, then the product."""
        answers, slots = self.answer(batch.inputs), batch.inputs["slots"]
        if self.rounded:
            answers = torch.tensor(_four_decimals(answers), device=slots.device)
        values = product(answers, slots)
        scores = _four_decimals(values) if self.rounded else values.tolist()
        by_row = answers.tolist()
        return [
            Score(score, {"questions": dict(zip(phrases, (by_row[row] for row in rows), strict=False))})
            for score, phrases, rows in zip(scores, batch.asked, slots.tolist(), strict=True)
        ]


def build(config: Mapping[str, Any]) -> BlipForQuestionAnswering:
    """Build BLIP's ViT-B/16 at 480 pixels and two BERTs; `config` overrides fields of "vision" and "text"."""
    from transformers import BlipConfig, BlipForQuestionAnswering

    vision = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 480,
        "patch_size": 16,
        "layer_norm_eps": 1e-6,  # timm's, not BlipVisionConfig's 1e-5
        **config.get("vision", {}),
    }
    text = {
        "vocab_size": 30524,
        "hidden_size": 768,
        "encoder_hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,  # not BlipTextConfig's 8
        "max_position_embeddings": 512,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "is_decoder": True,  # builds the cross-attention; the question is read both ways all the same
        **config.get("text", {}),
    }
    net = BlipForQuestionAnswering(BlipConfig(vision_config=vision, text_config=text))
    mend_cross_attention(net)
    return net


def rename(state: Mapping[str, Tensor], net: BlipForQuestionAnswering) -> dict[str, Tensor]:
    """Map a checkpoint onto `net`: upstream's names, its position embeddings, the decoder's tied weights."""
    renamed = rename_upstream(state)
    positions = "vision_model.embeddings.position_embedding"
    if "visual_encoder.pos_embed" in state:
        patches = net.vision_model.embeddings.num_patches
        renamed[positions] = resize_positions(renamed[positions], patches)
    for kept, tied in (
        (
            "text_decoder.bert.embeddings.word_embeddings.weight",
            "text_decoder.cls.predictions.decoder.weight",
        ),
        ("text_decoder.cls.predictions.bias", "text_decoder.cls.predictions.decoder.bias"),
    ):
        if kept in renamed:  # safetensors leaves one of the two out
            renamed.setdefault(tied, renamed[kept])
    return renamed


def question(phrase: str) -> str:
    """Return upstream's question for a phrase: `pre_question` in its `data/utils.py`."""
    text = re.sub(r"[.!\"()*#:;~]", "", f"{phrase}?".lower()).rstrip(" ")
    return " ".join(text.split(" ")[:_MAX_WORDS])


def product(answers: Tensor, slots: Tensor) -> Tensor:
    """Multiply the answers (Q,) in each item's slots (B, K); row Q is no question and counts 1."""
    return torch.cat([answers, answers.new_ones(1)])[slots].prod(-1)


def _four_decimals(values: Tensor) -> list[float]:
    """Round as printing does: upstream writes the numbers to JSON as text."""
    return [float(f"{value:.4f}") for value in values.tolist()]

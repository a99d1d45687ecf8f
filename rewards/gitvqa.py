"""T2I-R1's GIT reward: Microsoft's GIT is asked for each of a prompt's objects; the score is the mean P(yes).

Paper: arXiv 2505.00703. Source of the recipe: CaraJ7/T2I-R1, `src/t2i-r1/src/utils/reward_git.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from PIL import Image
from torch import Tensor

from rewardzoo.errors import ItemError
from rewardzoo.resize import ShortestAndCrop
from rewardzoo.rewards._bert import word_pieces
from rewardzoo.rewards._images import normalize, to_tensor
from rewardzoo.rewards._model import Batch, Outcome, RewardModel, Score
from rewardzoo.rewards._nouns import read_phrases
from rewardzoo.rewards._spec import HubFile, RewardSpec, Variant
from rewardzoo.rewards._weights import load_strictly, read_checkpoint

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import GitForCausalLM

_MAX_PHRASES = 16
_NOT_SCORED = ("spatial", "numeracy")  # task types that T2I-R1 leaves to its detector
_EXAMPLE = '{"attr_nouns": ["a red car", "a blue house"]}'


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of one item: each of `phrases`; without any the score is `constant`."""

    phrases: tuple[str, ...]
    constant: int = 0


class GitVQA(RewardModel):
    """T2I-R1's GIT reward: the mean of P(yes) over the objects of a prompt.

    They are `metadata["attr_nouns"]` (objects with their attributes) or else `metadata["nouns"]`, as in
    T2I-R1's training data; the prompt itself is not read. Without attributes and with an empty list of nouns
    the score is 1; where `metadata["task_type"]` is "spatial" or "numeracy" it is 0. Details have P(yes) by
    phrase under "questions".
    """

    spec = RewardSpec(
        name="gitvqa",
        title="GIT VQA (T2I-R1)",
        paper="arXiv:2505.00703",
        code_license="Apache-2.0",
        score_range=(0.0, 1.0),
        max_batch=16,
        variants=(
            Variant(
                "t2i-r1",
                recipe="gitvqa/t2i-r1",
                files={
                    "checkpoint": HubFile(
                        "microsoft/git-large-vqav2",
                        "pytorch_model.bin",
                        "0c0e5721b1aa8b7e4a650063301712f6227d701b",
                    ),
                    "vocabulary": HubFile(
                        "google-bert/bert-base-uncased",
                        "vocab.txt",
                        "86b5e0934494bd15c9632b12f734a8a67f723594",
                        "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
                    ),
                },
                weights_license="MIT",
                resize=ShortestAndCrop(420, round_corner=False),
            ),
        ),
    )

    def __init__(self, variant: Variant, net: GitForCausalLM, tokenizer: Tokenizer) -> None:
        super().__init__(variant, net)
        self.tokenizer = tokenizer
        ids = tokenizer.get_vocab()
        self.start, self.pair = ids["[CLS]"], [ids["yes"], ids["no"]]
        self.image_size = int(cast(Any, net.config).vision_config.image_size)
        self.max_tokens: int = net.config.max_position_embeddings

    @classmethod
    def load(cls, variant: Variant, files: Mapping[str, Path]) -> Self:
        """Read weights named as `transformers` does."""
        from transformers.initialization import no_init_weights

        with no_init_weights():
            net = build(variant.config)
        state = read_checkpoint(files["checkpoint"])
        # Older files hold two constants too. Upstream loads loosely; here a missing weight is an error.
        kept = {key: tensor for key, tensor in state.items() if not key.endswith("position_ids")}
        load_strictly(net, kept, files["checkpoint"])
        return cls(variant, net, word_pieces(files["vocabulary"]))

    def prepare_image(self, image: Image.Image) -> Tensor:
        """Resize the shortest side, crop the centre, normalise: (3, S, S)."""
        return normalize(to_tensor(ShortestAndCrop(self.image_size, round_corner=False)(image)))

    def prepare_prompt(self, prompt: str, metadata: Mapping[str, Any]) -> Question:
        """Read what to ask from the metadata."""
        task = metadata.get("task_type")
        if task is not None and not isinstance(task, str):
            raise ItemError(f'metadata["task_type"] must be a text, got {task!r:.100}')
        if task in _NOT_SCORED:
            return Question(())
        phrases = read_phrases(metadata, "attr_nouns", _MAX_PHRASES)
        if phrases == ():
            raise ItemError(
                'metadata["attr_nouns"] is empty: name the objects, or leave it out and give "nouns"'
            )
        if phrases is None:
            phrases = read_phrases(metadata, "nouns", _MAX_PHRASES)
        if phrases is None:
            raise ItemError(f"give what to ask for as metadata, for example {_EXAMPLE}")
        for phrase in phrases:
            if (length := len(self._encode(phrase))) > self.max_tokens:
                raise ItemError(
                    f"{phrase[:40]!r}… takes {length} tokens, at most {self.max_tokens} can be read"
                )
        return Question(phrases, constant=int(not phrases))

    def collate(
        self, images: Sequence[Any], image_index: Sequence[int], asked: Sequence[Any]
    ) -> dict[str, Tensor]:
        """Flatten the questions, each once an image: `slots` (B, K) are rows of them, or Q for none."""
        rows: dict[tuple[int, str], int] = {}
        items = [
            [rows.setdefault((image, phrase), len(rows)) for phrase in question.phrases]
            for image, question in zip(image_index, asked, strict=True)
        ]
        ids = [torch.tensor(self._encode(phrase)) for _, phrase in rows]
        most = max(map(len, items))
        return {
            "pixel_values": torch.stack(list(images)),
            # No mask: text is read from left to right, so what comes after a question cannot be seen.
            "input_ids": torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
            if ids
            else torch.zeros(0, 1, dtype=torch.long),
            "last": torch.tensor([len(row) - 1 for row in ids], dtype=torch.long),
            "asked_of": torch.tensor([image for image, _ in rows], dtype=torch.long),
            "slots": torch.tensor(
                [item + [len(rows)] * (most - len(item)) for item in items], dtype=torch.long
            ),
            "counts": torch.tensor([len(item) for item in items]),
            "constants": torch.tensor([question.constant for question in asked]),
        }

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Mean of P(yes) over an item's questions, (B,) in [0, 1]; differentiable in the pixels."""
        return mean(self.answer(inputs), inputs)

    def answer(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """P(yes) of P(yes) + P(no) for each question: (Q,)."""
        pixels, ids = inputs["pixel_values"], inputs["input_ids"]
        if not len(ids):
            return pixels.flatten()[:0]
        net = cast(Any, self.net)
        patches = net.git.visual_projection(net.git.image_encoder(pixels).last_hidden_state)
        patches = patches[inputs["asked_of"]]
        tokens = torch.cat([patches, net.git.embeddings(input_ids=ids)], 1)
        mask = attention_mask(patches.shape[1], ids.shape[1], tokens)
        hidden = net.git.encoder(tokens, attention_mask=mask).last_hidden_state
        rows = torch.arange(len(ids), device=ids.device)
        logits = net.output(hidden[rows, patches.shape[1] + inputs["last"]])
        # Of these two alone it is the same ratio as after upstream's softmax over the whole vocabulary.
        pair = logits[:, self.pair]
        yes: Tensor = pair.to(torch.promote_types(pair.dtype, torch.float32)).softmax(-1)[:, 0]
        return yes

    def evaluate(self, batch: Batch) -> Sequence[Outcome]:
        """Score a batch, P(yes) by phrase among the details."""
        answers = self.answer(batch.inputs)
        values = mean(answers, batch.inputs).tolist()
        by_row = answers.tolist()
        return [
            Score(
                value,
                {
                    "questions": dict(
                        zip(item.phrases, (by_row[row] for row in rows if row < len(by_row)), strict=True)
                    )
                },
            )
            for value, item, rows in zip(values, batch.asked, batch.inputs["slots"].tolist(), strict=True)
        ]

    def _encode(self, phrase: str) -> list[int]:
        """Token ids of upstream's question for a phrase: [CLS] before, no [SEP] after."""
        return [self.start, *self.tokenizer.encode(f"{phrase}?", add_special_tokens=False).ids]


def build(config: Mapping[str, Any]) -> GitForCausalLM:
    """Build GIT-large for VQA at 420 pixels; `config` overrides fields of "vision" and "text"."""
    from transformers import GitConfig, GitForCausalLM

    vision = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 420,
        "patch_size": 14,
        **config.get("vision", {}),
    }
    net = GitForCausalLM(GitConfig(vision_config=vision, **config.get("text", {})))
    # Its vision layers can use the fused attention, which `transformers` does not offer for GIT as a whole;
    # the plain one takes float32 for its softmax whatever the weights are in.
    cast(Any, net.config).vision_config._attn_implementation = "sdpa"
    return net


def attention_mask(patches: int, tokens: int, like: Tensor) -> Tensor:
    """Return what is added to attention scores, (1, 1, N, N) for N = patches + tokens: 0 where one may look.

    All may look at every patch, and tokens at those before them.
    """
    total = patches + tokens
    seen = torch.ones(total, total, dtype=torch.bool, device=like.device).tril()
    seen[:, :patches] = True
    hidden = torch.zeros(total, total, dtype=like.dtype, device=like.device)
    return hidden.masked_fill(~seen, torch.finfo(like.dtype).min)[None, None]


def mean(answers: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """Average the answers (Q,) in each item's slots (B, K), row Q being no question; or the constant."""
    sums = torch.cat([answers, answers.new_zeros(1)])[inputs["slots"]].sum(-1)
    return sums / inputs["counts"].clamp(min=1) + inputs["constants"]

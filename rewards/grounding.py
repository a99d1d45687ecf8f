"""GroundingDINO as a judge: are the objects there, how many, and how do they stand to each other.

The reward of T2I-R1 (arXiv 2505.00703), `src/t2i-r1/src/utils/reward_gdino.py`, with the detector of
arXiv 2303.05499. Detection runs on `transformers`' GroundingDINO with a decoder of ours, for the boxes at
an edge (`rewards/_grounding_decoder.py`); `rename` maps the original checkpoint,
`groundingdino_swint_ogc.pth`, and the hub's conversion of it onto that. What is asked comes from an item's
metadata, its prompt is not read: `rewards/_relations.py` has the questions and the rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from rewardzoo.errors import ItemError
from rewardzoo.rewards._grounding_decoder import Decoder, last_boxes
from rewardzoo.rewards._grounding_names import rename
from rewardzoo.rewards._model import Batch, Outcome, RewardModel, Score
from rewardzoo.rewards._relations import Box, Claim, Question, caption, judge, read_question
from rewardzoo.rewards._spec import HubFile, RewardSpec, Variant
from rewardzoo.rewards._weights import load_strictly, read_checkpoint

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

_T2I_R1 = "grounding/t2i-r1"
_THRESHOLD = 0.3  # upstream's box threshold: a phrase's confidence is the mean over its tokens
_SIDES = (800, 1333)  # pixels of the shorter side, unless the longer one would pass its own
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_MAX_TOKENS = 256  # the detector reads no more
_FILES = {
    "checkpoint": HubFile(
        "IDEA-Research/grounding-dino-tiny",
        "model.safetensors",
        "a2bb814dd30d776dcf7e30523b00659f4f141c71",
        "1a2412ef99bd74bcd3c2a246fa1e48581f8889a1300c9051974741314fc042f3",
    ),
    "vocabulary": HubFile(
        "google-bert/bert-base-uncased",
        "vocab.txt",
        "86b5e0934494bd15c9632b12f734a8a67f723594",
        "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    ),
}


@dataclass(frozen=True, slots=True)
class Asked:
    """A question as the detector gets it: token ids (L,), its nouns' token weights (P, 256) and owners.

    A row of `phrases` has the mean over a noun's tokens; `owners` (P,) is the place among the question's
    names of what is found there, -1 where no name is.
    """

    question: Question
    input_ids: Tensor
    phrases: Tensor
    owners: Tensor


class Grounding(RewardModel):
    """Objects, counts and relations that a detector finds, as a score in [0, 1].

    Details: `parts`, each claim with its score, and `detections`, each with its name, its confidence, and
    its box's centre and size in fractions of the image's width and height. The score is the parts' mean.
    """

    spec = RewardSpec(
        name="grounding",
        title="GroundingDINO objects, counts and relations",
        paper="arXiv:2505.00703",
        code_license="Apache-2.0",
        score_range=(0.0, 1.0),
        variants=(
            Variant("fixed", recipe="grounding/fixed", files=_FILES, weights_license="Apache-2.0"),
            Variant("t2i-r1", _T2I_R1, _FILES, weights_license="Apache-2.0", quirk=True),
        ),
        differentiable=False,
        max_batch=16,
    )

    def __init__(self, variant: Variant, net: nn.Module, tokenizer: Tokenizer) -> None:
        super().__init__(variant, net)
        self.tokenizer = tokenizer
        self.faithful = variant.recipe == _T2I_R1
        self.queries: int = cast(Any, net).config.num_queries
        self.sides: Sequence[int] = variant.config.get("sides", _SIDES)  # type: ignore[assignment]

    @classmethod
    def load(cls, variant: Variant, files: Mapping[str, Path]) -> Self:
        """Read the hub's `model.safetensors` or upstream's `.pth`.

        `variant.config` has the fields of `GroundingDinoConfig` that differ from GroundingDINO-T's, and
        `sides` where images are not resized to 800 and 1333.
        """
        from transformers.initialization import no_init_weights

        own = tokenizer(files["vocabulary"])
        with no_init_weights():
            net = build(variant.config)
        specials = [own.token_to_id(token) for token in ("[CLS]", "[SEP]", ".", "?")]
        cast(Any, net).model.special_tokens.copy_(torch.tensor(specials))
        state = rename(read_checkpoint(files["checkpoint"]), cast(Any, net).config.decoder_layers)
        load_strictly(net, state, files["checkpoint"])
        return cls(variant, net, own)

    def prepare_image(self, image: Image.Image) -> Tensor:
        """Resize bilinearly, the shorter side to 800 or the longer one to 1333, and normalise: (3, H, W).

        Raises:
            ItemError: the image is so narrow that it has fewer places than the detector has queries.
        """
        width, height = target_size(*image.size, self.sides)
        if min(width, height) < 1 or places(width, height) < self.queries:
            raise ItemError(f"an image of {image.width}x{image.height} pixels is too narrow for the detector")
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float().div(255)
        return (pixels - torch.tensor(_MEAN)[:, None, None]) / torch.tensor(_STD)[:, None, None]

    def prepare_prompt(self, prompt: str, metadata: Mapping[str, Any]) -> Asked:
        """Read the question in the metadata and tokenise its nouns; the prompt is not read.

        Raises:
            ItemError: there is no question, or one that cannot be asked.
        """
        question = read_question(metadata, faithful=self.faithful)
        text, spans, phrases = caption(question.nouns, faithful=self.faithful)
        encoded = self.tokenizer.encode(text)
        names = {name: i for i, name in enumerate(question.names)}
        return Asked(
            question,
            torch.tensor(encoded.ids),
            torch.stack([token_weights(encoded, parts) for parts in spans] or [torch.zeros(_MAX_TOKENS)]),
            torch.tensor([names.get(phrase, -1) for phrase in phrases] or [-1]),
        )

    def collate(
        self, images: Sequence[Any], image_index: Sequence[int], asked: Sequence[Any]
    ) -> dict[str, Tensor]:
        """Stack what differs in size with padding.

        pixel_values (U, 3, H, W) with their own `sizes` (U, 2); input_ids (B, L) with `lengths` (B,);
        `phrases` (B, P, 256) with `owners` (B, P) and `claims` (B, C, 4), -1 where there is none.
        """
        claims = [[(c.kind, c.first, c.second, c.value) for c in a.question.claims] for a in asked]
        height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
        pixels = torch.zeros(len(images), 3, height, width)
        for row, image in zip(pixels, images, strict=True):
            row[:, : image.shape[1], : image.shape[2]] = image
        return {
            "pixel_values": pixels,
            "sizes": torch.tensor([image.shape[1:] for image in images]),
            "image_index": torch.tensor(image_index),
            "input_ids": _padded([a.input_ids for a in asked], 0),
            "lengths": torch.tensor([len(a.input_ids) for a in asked]),
            "phrases": _padded([a.phrases for a in asked], 0),
            "owners": _padded([a.owners for a in asked], -1),
            "claims": _padded([torch.tensor(c, dtype=torch.long).reshape(-1, 4) for c in claims], -1),
        }

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Score B questions, (B,) in [0, 1]: the mean of what each claim got, 1 where nothing is claimed."""
        return torch.tensor([_mean(parts) for parts, _ in self._answers(inputs)])

    def evaluate(self, batch: Batch) -> Sequence[Outcome]:
        """Score a batch, with `parts` and `detections` as details."""
        outcomes = []
        for asked, (parts, found) in zip(batch.asked, self._answers(batch.inputs), strict=True):
            question: Question = asked.question
            said = [
                {"claim": question.describe(claim), "score": score}
                for claim, score in zip(question.claims, parts, strict=True)
            ]
            seen = [
                {
                    "name": question.names[name],
                    "score": box.score,
                    "centre": [box.x, box.y],
                    "size": [box.width, box.height],
                }
                for name in sorted(found)
                for box in sorted(found[name], key=lambda box: -box.score)
            ]
            outcomes.append(Score(_mean(parts), {"parts": said, "detections": seen}))
        return outcomes

    def _answers(self, inputs: Mapping[str, Tensor]) -> list[tuple[list[float], dict[int, list[Box]]]]:
        """Return each item's scores by claim and its boxes by name; an image and its nouns are read once."""
        sizes, lengths = inputs["sizes"].tolist(), inputs["lengths"].tolist()
        owners, claims = inputs["owners"].tolist(), inputs["claims"].tolist()
        known: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
        answers = []
        for i, image in enumerate(inputs["image_index"].tolist()):
            height, width = sizes[image]
            found: dict[int, list[Box]] = {}
            asked = [Claim(*row) for row in claims[i] if row[0] >= 0]
            if asked:
                ids = inputs["input_ids"][i, None, : lengths[i]]
                key = (image, *ids[0].tolist())
                if key not in known:
                    known[key] = self._detect(inputs["pixel_values"][image, None, :, :height, :width], ids)
                found = _name(*known[key], inputs["phrases"][i].float(), owners[i])
            parts = [judge(claim, found, width / height, faithful=self.faithful) for claim in asked]
            answers.append((parts, found))
        return answers

    def _detect(self, pixels: Tensor, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return each query's confidence in each token (Q, 256) and its box (Q, 4), in one image.

        One image at a time: the detector ranks places by confidence and gives each rank a query of its own,
        so a neighbour's rounding, let alone its padding, would move boxes.
        """
        mask = torch.ones_like(input_ids[:, :_MAX_TOKENS])  # the network cuts the ids itself, not the mask
        out = self.net(pixel_values=pixels, input_ids=input_ids, attention_mask=mask)
        return out.logits[0].float().sigmoid(), last_boxes(self.net, out)[0].float()


def _name(tokens: Tensor, boxes: Tensor, phrases: Tensor, owners: Sequence[int]) -> dict[int, list[Box]]:
    """Return the boxes of which a phrase's confidence, the mean over its tokens, is above the threshold."""
    scores, places = (phrases @ tokens.T).tolist(), boxes.tolist()
    found: dict[int, list[Box]] = {}
    for owner, row in zip(owners, scores, strict=True):
        for score, place in zip(row, places, strict=True):
            if owner >= 0 and score > _THRESHOLD:
                found.setdefault(owner, []).append(Box(score, *place))
    return found


def build(config: Mapping[str, Any]) -> nn.Module:
    """Build the detector: GroundingDINO-T with the fields of `config` changed."""
    from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection

    net: nn.Module = GroundingDinoForObjectDetection(
        GroundingDinoConfig(**{k: v for k, v in config.items() if k != "sides"})
    )
    model = cast(Any, net).model
    model.backbone.conv_encoder.model.swin.layernorm = nn.Identity()  # its output is not used
    model.decoder = Decoder(model.decoder)
    return net


def tokenizer(vocabulary: Path) -> Tokenizer:
    """Return BERT's uncased word-piece tokenizer over `vocabulary`; it neither cuts nor pads."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    own = Tokenizer(models.WordPiece.from_file(str(vocabulary), unk_token="[UNK]"))
    own.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    own.normalizer = normalizers.BertNormalizer(lowercase=True)
    own.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ids = own.get_vocab()
    own.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    return own


def token_weights(encoded: Encoding, spans: Sequence[tuple[int, int]]) -> Tensor:
    """Return the weight of each token in the mean over some spans of characters: (256,).

    A span runs from the token at its first character to that at its last; where there is none, up to two
    characters further in count. `create_positive_map_from_span` in GroundingDINO's `util/vl_utils.py`.
    """
    weights = torch.zeros(_MAX_TOKENS)
    for begin, end in spans:
        first = _token(encoded, (begin, begin + 1, begin + 2))
        last = _token(encoded, (end - 1, end - 2, end - 3))
        if first is not None and last is not None:
            weights[first : last + 1] = 1
    return weights / (weights.sum() + 1e-6)


def _token(encoded: Encoding, places: Sequence[int]) -> int | None:
    tokens = (encoded.char_to_token(place) for place in places if place >= 0)
    return next((token for token in tokens if token is not None), None)


def target_size(width: int, height: int, sides: Sequence[int] = _SIDES) -> tuple[int, int]:
    """Return the size an image is resized to, rounded as in GroundingDINO's `datasets/transforms.py`.

    `sides` are the shorter side's length and the longer one's limit.
    """
    short, long = float(min(width, height)), float(max(width, height))
    side = sides[0] if long / short * sides[0] <= sides[1] else round(sides[1] * short / long)
    if min(width, height) == side:
        return width, height
    if width < height:
        return side, int(side * height / width)
    return int(side * width / height), side


def places(width: int, height: int) -> int:
    """Return how many places an image of that size has in the detector's four feature maps."""
    width, height = -(-width // 4), -(-height // 4)
    total = 0
    for _ in range(4):
        width, height = -(-width // 2), -(-height // 2)
        total += width * height
    return total


def _padded(rows: Sequence[Tensor], value: float) -> Tensor:
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)


def _mean(parts: Sequence[float]) -> float:
    return sum(parts) / len(parts) if parts else 1.0

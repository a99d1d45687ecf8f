"""CLIP-FlanT5: FLAN-T5 that reads the patches of a CLIP ViT-L/14 at 336 through two linear layers.

Paper: arXiv 2404.01291. Source: linzhiqiu/t2v_metrics before version 3.1,
`models/vqascore_models/clip_t5_model.py` and `clip_t5/model/`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image
from torch import Tensor, nn

from rewardzoo.errors import ItemError, WeightsError
from rewardzoo.resize import ShortestAndCrop
from rewardzoo.rewards._images import normalize, to_tensor
from rewardzoo.rewards._vlm_images import pad_to_square
from rewardzoo.rewards._weights import load_strictly, read_checkpoint

IMAGE = "<image>"
DIALOGUE = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions. USER: {image}\n{question} ASSISTANT: "
)
_PADDING = (122, 116, 104)  # CLIP's mean colour in whole grey levels
_MAX_TOKENS = 2048  # the image counts as one
SENTINELS = 100  # T5's <extra_id_0> … <extra_id_99>, behind the pieces of its vocabulary
_SPECIAL = re.compile(r"(</s>|<unk>|<pad>|<extra_id_\d{1,2}>)")
_T5_FIELDS = (
    "vocab_size",
    "d_model",
    "d_kv",
    "d_ff",
    "num_layers",
    "num_decoder_layers",
    "num_heads",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
    "layer_norm_epsilon",
    "feed_forward_proj",
)
_VISION: Mapping[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
}


class ClipT5(nn.Module):
    """CLIP-FlanT5 with its tokenizer: the likelihood of an answer to a question about an image.

    `t5` are fields of T5's configuration, `vision` changes those of CLIP's ViT-L/14 at 336.
    """

    def __init__(self, t5: Mapping[str, Any], vision: Mapping[str, Any], vocabulary: Path) -> None:
        from sentencepiece import SentencePieceProcessor  # type: ignore[import-untyped]
        from transformers import CLIPVisionConfig, CLIPVisionModel, T5Config
        from transformers.models.t5.modeling_t5 import T5Stack

        super().__init__()
        seen: Any = CLIPVisionConfig(**{**_VISION, **vision})
        config: Any = T5Config(**t5)
        both = {**t5, "is_encoder_decoder": False, "use_cache": False}
        writing = {"is_decoder": True, "num_layers": config.num_decoder_layers}
        self.image_size: int = seen.image_size
        self.patches = (seen.image_size // seen.patch_size) ** 2
        self.pieces = SentencePieceProcessor(model_file=str(vocabulary))
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder: Any = T5Stack(T5Config(**both))
        self.decoder: Any = T5Stack(T5Config(**{**both, **writing}))
        del self.encoder.embed_tokens, self.decoder.embed_tokens  # both are given rows of `shared`
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.vision_tower = CLIPVisionModel(seen)
        self.mm_projector = nn.Sequential(
            nn.Linear(seen.hidden_size, config.d_model),
            nn.GELU(),
            nn.Linear(config.d_model, config.d_model),
        )

    @classmethod
    def from_folder(cls, folder: Path, vocabulary: Path, vision: Mapping[str, Any]) -> Self:
        """Read upstream's `config.json` and its shards, and T5's `spiece.model`.

        Weights are held in the dtype they are stored in.

        Raises:
            WeightsError: a file is missing, or the weights do not fit the configuration.
        """
        from transformers.initialization import no_init_weights

        try:
            known = json.loads((folder / "config.json").read_text())
        except (OSError, ValueError) as error:
            raise WeightsError(f"{folder} has no config.json that can be read: {error}") from error
        state = rename_upstream(read_checkpoint(folder))
        with no_init_weights(), _default_dtype(next(iter(state.values())).dtype):
            net = cls({name: known[name] for name in _T5_FIELDS if name in known}, vision, vocabulary)
        load_strictly(net, state, folder)
        net.cut_vocabulary()
        return net

    def cut_vocabulary(self) -> None:
        """Drop the rows behind the tokenizer's last token, as upstream does: they are no answers."""
        size = min(self.pieces.get_piece_size() + SENTINELS, self.lm_head.out_features)
        self.lm_head.weight = nn.Parameter(self.lm_head.weight[:size])
        self.lm_head.out_features = size

    def prepare_image(self, image: Image.Image) -> Tensor:
        """Pad to a square with CLIP's mean colour, resize, normalise: (3, S, S)."""
        square = ShortestAndCrop(self.image_size)(pad_to_square(image, _PADDING))
        return normalize(to_tensor(square))

    def question_ids(self, question: str) -> list[int]:
        """Token ids of the dialogue; `-1` is the image. An end token stands before the image too.

        Upstream tokenises what is before and behind the image apart, and T5's tokenizer ends each.

        Raises:
            ItemError: the question holds `<image>`, or is too long.
        """
        if IMAGE in question:
            raise ItemError(f"the question holds {IMAGE!r}, which the model reads as an image")
        before, behind = DIALOGUE.format(image=IMAGE, question=question).split(IMAGE)
        return [*self.encode(before), -1, *self.encode(behind)][:_MAX_TOKENS]

    def encode(self, text: str) -> list[int]:
        """T5's token ids of a text, its end token last; special tokens in the text are read as such."""
        ids: list[int] = []
        for part in _SPECIAL.split(text):
            if part.startswith("<extra_id_") and _SPECIAL.fullmatch(part):
                ids.append(self.pieces.get_piece_size() + SENTINELS - 1 - int(part[10:-1]))
            elif _SPECIAL.fullmatch(part):
                ids.append(self.pieces.piece_to_id(part))
            else:
                ids += self.pieces.encode(part)
        return [*ids, self.pieces.eos_id()]

    def collate(
        self,
        images: Sequence[Tensor],
        image_index: Sequence[int],
        questions: Sequence[list[int]],
        answers: Sequence[list[int]],
    ) -> dict[str, Tensor]:
        """Stack U images, pad B questions and answers on the right.

        Returns `pixel_values` (U, 3, S, S), `image_index` (B,), `input_ids` and `attention_mask` (B, L),
        where -1 marks a place of the image, and `labels` (B, A), -100 where padded.
        """
        rows = [
            [token for one in row for token in ([one] * self.patches if one == -1 else [one])]
            for row in questions
        ]
        padded = nn.utils.rnn.pad_sequence
        return {
            "pixel_values": torch.stack(list(images)),
            "image_index": torch.tensor(image_index),
            "input_ids": padded([torch.tensor(row) for row in rows], batch_first=True),
            "attention_mask": padded(
                [torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True
            ),
            "labels": padded([torch.tensor(row) for row in answers], batch_first=True, padding_value=-100),
        }

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Geometric mean of the probabilities of an answer's tokens, end token included: (B,) in [0, 1]."""
        seen = self.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[-2]
        features = self.mm_projector(seen[:, 1:])[inputs["image_index"]]
        ids, mask, labels = inputs["input_ids"], inputs["attention_mask"], inputs["labels"]
        embeds = self.shared(ids.clamp(min=0))
        embeds = embeds.masked_scatter((ids == -1)[..., None], features.to(embeds.dtype))
        read = self.encoder(inputs_embeds=embeds, attention_mask=mask).last_hidden_state
        # The decoder starts with the padding token, 0, and reads the answer one place behind.
        said = F.pad(labels.clamp(min=0), (1, 0))[:, :-1]
        written = self.decoder(
            inputs_embeds=self.shared(said),
            attention_mask=(labels != -100).long(),
            encoder_hidden_states=read,
            encoder_attention_mask=mask,
            use_cache=False,
        ).last_hidden_state
        logits = self.lm_head(written)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        losses = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
        return torch.exp(-losses.sum(1) / (labels != -100).sum(1))


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Build weights in the dtype they are stored in: FLAN-T5 XXL takes 46 GB in float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def rename_upstream(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Map upstream's keys onto `ClipT5`'s; others pass, for the strict load to judge."""
    renamed = {}
    for key, tensor in state.items():
        if key.endswith(("embed_tokens.weight", "position_ids")):
            continue  # `shared` once more; a range
        key = key.replace("vision_tower.vision_tower.vision_model.", "vision_tower.", 1)
        renamed[key.replace("vision_tower.vision_tower.", "vision_tower.", 1)] = tensor
    return renamed

"""ImageReward: BLIP's image-grounded text encoder with a regression head, ranked on human preferences.

Paper: arXiv 2304.05977. Source of the recipe: THUDM/ImageReward, `ImageReward/ImageReward.py`. Runs on the
BLIP classes of `transformers`; `rename_upstream` maps the released checkpoint's keys onto them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from PIL import Image
from torch import Tensor, nn

from rewardzoo.resize import ShortestAndCrop
from rewardzoo.rewards import _blip
from rewardzoo.rewards._bert import word_pieces
from rewardzoo.rewards._heads import LinearHead
from rewardzoo.rewards._images import normalize, to_tensor
from rewardzoo.rewards._model import PairReward
from rewardzoo.rewards._spec import HubFile, PackagedFile, RewardSpec, Variant
from rewardzoo.rewards._weights import load_strictly, read_checkpoint

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Of the raw head over upstream's training set.
_MEAN, _STD = 0.16717362830052426, 1.0333394966054072
_MAX_TOKENS = 35  # upstream cuts prompts here
_RECIPE = "imagereward/v1.0"

MINI_CONFIG: Mapping[str, Any] = {
    "vision": {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 8,
        "initializer_range": 0.09,  # BlipVisionConfig's own, 1e-10, is for loading weights only
    },
    "text": {
        "vocab_size": 46,
        "hidden_size": 128,
        "encoder_hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "initializer_range": 0.06,
        "bos_token_id": 2,
        "sep_token_id": 3,
    },
}
"""What the mini changes of the released architecture."""


class ImageReward(PairReward):
    """ImageReward v1.0."""

    spec = RewardSpec(
        name="imagereward",
        title="ImageReward",
        paper="arXiv:2304.05977",
        code_license="Apache-2.0",
        score_range=(-3.0, 3.0),
        variants=(
            Variant(
                "v1.0",
                recipe=_RECIPE,
                files={
                    "checkpoint": HubFile(
                        "THUDM/ImageReward",
                        "ImageReward.pt",
                        "5736be03b2652728fb87788c9797b0570450ab72",
                    ),
                    "vocabulary": HubFile(
                        "google-bert/bert-base-uncased",
                        "vocab.txt",
                        "86b5e0934494bd15c9632b12f734a8a67f723594",
                        "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
                    ),
                },
                weights_license="Apache-2.0",
                resize=ShortestAndCrop(224),
            ),
            Variant(
                "mini",
                recipe=_RECIPE,
                files={
                    "checkpoint": PackagedFile("minis/imagereward/model.safetensors"),
                    "vocabulary": PackagedFile("minis/imagereward/vocab.txt"),
                },
                weights_license="Apache-2.0",
                config=MINI_CONFIG,
                resize=ShortestAndCrop(64),
            ),
        ),
    )

    def __init__(self, variant: Variant, net: RankedBlip, tokenizer: Tokenizer) -> None:
        super().__init__(variant, net)
        self.tokenizer = tokenizer
        self.image_size = net.image_size

    @classmethod
    def load(cls, variant: Variant, files: Mapping[str, Path]) -> Self:
        """Read upstream's `ImageReward.pt`, or weights named as `transformers` does."""
        from transformers.initialization import no_init_weights

        with no_init_weights():
            net = RankedBlip(variant.config)
        load_strictly(net, rename_upstream(read_checkpoint(files["checkpoint"])), files["checkpoint"])
        return cls(variant, net, tokenizer(files["vocabulary"], net.text_encoder.config.vocab_size))

    def prepare_image(self, image: Image.Image) -> Tensor:
        """Resize the shortest side, crop the centre, normalise: (3, S, S)."""
        return normalize(to_tensor(ShortestAndCrop(self.image_size)(image)))

    def prepare_text(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Tokenise, cut at 35 word pieces: input_ids and attention_mask (U, L)."""
        return tokenize(self.tokenizer, prompts)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Score in standard deviations of upstream's training set, (B,); differentiable in the pixels."""
        net = cast(RankedBlip, self.net)
        patches = net.vision_model(inputs["pixel_values"]).last_hidden_state[inputs["image_index"]]
        text = (inputs[name][inputs["text_index"]] for name in ("input_ids", "attention_mask"))
        return net.score_patches(patches, *text)


class RankedBlip(nn.Module):
    """BLIP ViT-L/16 at 224, BERT-base with cross-attention to it, and an MLP on the text's first token.

    `config` overrides fields of the two encoders, as `MINI_CONFIG` does.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        from transformers import BlipTextConfig, BlipVisionConfig, BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        super().__init__()
        self.image_size: int = config.get("vision", {}).get("image_size", 224)
        vision = BlipVisionConfig(
            **{
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "image_size": self.image_size,
                "patch_size": 16,
                "layer_norm_eps": 1e-6,  # timm's, not BlipVisionConfig's 1e-5
                **config.get("vision", {}),
            }
        )
        text = BlipTextConfig(
            **{
                "vocab_size": 30524,
                "hidden_size": 768,
                "encoder_hidden_size": 1024,
                "intermediate_size": 3072,
                "num_hidden_layers": 12,
                "num_attention_heads": 12,
                "max_position_embeddings": 512,
                "hidden_act": "gelu",
                "layer_norm_eps": 1e-12,
                "is_decoder": True,  # builds the cross-attention; forward attends both ways
                **config.get("text", {}),
            }
        )
        self.vision_model = BlipVisionModel(vision)
        self.text_encoder = BlipTextModel(text, add_pooling_layer=False)
        self.mlp = LinearHead(text.hidden_size)

    def score_patches(self, patches: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Score B pairs of encoded images (B, P, D) and tokens (B, L) -> (B,)."""
        hidden = self.text_encoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=patches,
            encoder_attention_mask=torch.ones(patches.shape[:2], dtype=torch.long, device=patches.device),
            is_decoder=False,
        ).last_hidden_state
        raw: Tensor = self.mlp(hidden[:, 0])[:, 0]
        return (raw - _MEAN) / _STD


_UNUSED = re.compile(r"^blip\.(vision_proj|text_proj)\.")  # of BLIP's contrastive stage


def rename_upstream(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Map the released checkpoint's keys onto `RankedBlip`'s; others pass, for the strict load to judge."""
    kept = {key: tensor for key, tensor in state.items() if not _UNUSED.search(key)}
    return _blip.rename_upstream(kept, prefix="blip.")


def tokenize(tokenizer: Tokenizer, prompts: Sequence[str]) -> dict[str, Tensor]:
    """Return input_ids and attention_mask (U, L) of U prompts, as the tokenizer cuts and pads them."""
    encoded = tokenizer.encode_batch(list(prompts))
    return {
        "input_ids": torch.tensor([e.ids for e in encoded], dtype=torch.long),
        "attention_mask": torch.tensor([e.attention_mask for e in encoded], dtype=torch.long),
    }


def tokenizer(vocabulary: Path, embeddings: int = 0) -> Tokenizer:
    """Return BERT's uncased word-piece tokenizer over `vocabulary`, cut at upstream's 35 tokens.

    BLIP adds [DEC] and [ENC] after the vocabulary; they are known where the model's `embeddings` reach them.
    """
    own = word_pieces(vocabulary, _MAX_TOKENS)
    if embeddings >= own.get_vocab_size() + 2:
        own.add_special_tokens(["[DEC]", "[ENC]"])
    return own

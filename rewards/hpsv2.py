"""HPSv2: a CLIP ViT-H/14 tuned on human preferences; the score is the cosine of image and prompt.

Paper: arXiv 2306.09341. Source of the recipe: tgxs002/HPSv2, `hpsv2/img_score.py` and
`hpsv2/src/open_clip/transform.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

import torch
from PIL import Image
from torch import Tensor

from rewardzoo.rewards._images import normalize, resize_longest_and_pad, to_tensor
from rewardzoo.rewards._model import PairReward
from rewardzoo.rewards._spec import HubFile, PackagedFile, RewardSpec, Variant
from rewardzoo.rewards._weights import load_strictly, read_checkpoint

_REVISION = "697403c78157020a1ae59d23f111aa58ced35b0a"
_SHA256_V2_1 = "c57a38fb4a2f7e7c15bf00da2ea377cdf165448b4dd1052a484c215a998c9837"
# Upstream leaves antialiasing to torchvision: from 0.17 on its resize of tensors has it, before it had none.
_RECIPE, _NO_ANTIALIAS = "hpsv2/antialias", "hpsv2/no-antialias"
_V2_0 = {"checkpoint": HubFile("xswu/HPSv2", "HPS_v2_compressed.pt", _REVISION)}
_V2_1 = {"checkpoint": HubFile("xswu/HPSv2", "HPS_v2.1_compressed.pt", _REVISION, _SHA256_V2_1)}

MINI_CONFIG: Mapping[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {
        "image_size": 64,
        "layers": 4,
        "width": 128,
        "head_width": 32,
        "patch_size": 8,
        "no_ln_pre": True,
    },
    "text_cfg": {"context_length": 32, "vocab_size": 46, "width": 96, "heads": 3, "layers": 3},
}
"""open_clip's keys, as in its `model_configs/ViT-H-14.json`."""


class HPSv2(PairReward):
    """Human Preference Score v2."""

    spec = RewardSpec(
        name="hpsv2",
        title="Human Preference Score v2",
        paper="arXiv:2306.09341",
        code_license="Apache-2.0",
        score_range=(-1.0, 1.0),
        variants=(
            Variant("v2.0", _RECIPE, _V2_0, "Apache-2.0"),
            Variant("v2.1", _RECIPE, _V2_1, "Apache-2.0"),
            Variant("v2.0-no-antialias", _NO_ANTIALIAS, _V2_0, "Apache-2.0", quirk=True),
            Variant("v2.1-no-antialias", _NO_ANTIALIAS, _V2_1, "Apache-2.0", quirk=True),
            Variant(
                "mini",
                recipe=_RECIPE,
                files={
                    "checkpoint": PackagedFile("minis/hpsv2/model.safetensors"),
                    "tokenizer": PackagedFile("minis/hpsv2/tokenizer.json"),
                },
                weights_license="Apache-2.0",
                config=MINI_CONFIG,
            ),
        ),
    )

    def __init__(self, variant: Variant, net: Any, tokenize: Callable[[list[str]], Tensor]) -> None:
        super().__init__(variant, net)
        self.tokenize = tokenize
        self.image_size: int = net.visual.image_size[0]
        self.antialias = variant.recipe != _NO_ANTIALIAS

    @classmethod
    def load(cls, variant: Variant, files: Mapping[str, Path]) -> Self:
        """Read open_clip weights, upstream's half-precision `{"state_dict": …}` included."""
        from transformers.initialization import no_init_weights

        with no_init_weights():  # every weight is read; drawing a billion first takes three times as long
            net = build(variant.config)
        load_strictly(net, read_checkpoint(files["checkpoint"]), files["checkpoint"])
        return cls(variant, net, tokenizer(files.get("tokenizer")))

    def prepare_image(self, image: Image.Image) -> Tensor:
        """Resize the longest side, pad with black to a square, normalise: (3, S, S).

        Upstream skips the padding when the longest side is S already and then breaks on what is not square;
        here it is always padded.
        """
        pixels = resize_longest_and_pad(to_tensor(image), self.image_size, antialias=self.antialias)
        return normalize(pixels)

    def prepare_text(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Tokenise, cut at the context length with the end token kept: input_ids (U, L)."""
        return {"input_ids": self.tokenize(list(prompts))}

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Cosine of image and prompt, (B,) in [-1, 1]; differentiable in the pixels."""
        net = cast(Any, self.net)
        images: Tensor = net.encode_image(inputs["pixel_values"], normalize=True)
        prompts: Tensor = net.encode_text(inputs["input_ids"], normalize=True)
        return (images[inputs["image_index"]] * prompts[inputs["text_index"]]).sum(-1)


def build(config: Mapping[str, Any]) -> torch.nn.Module:
    """Build open_clip's CLIP: ViT-H-14 where `config` is empty."""
    import open_clip

    net: torch.nn.Module = open_clip.CLIP(**(config or open_clip.get_model_config("ViT-H-14")))
    return net


def tokenizer(file: Path | None) -> Callable[[list[str]], Tensor]:
    """Return CLIP's own byte-pair tokenizer, or the one in `file`: a `tokenizers` JSON that pads and cuts."""
    import open_clip
    from tokenizers import Tokenizer

    if file is None:
        return cast(Callable[[list[str]], Tensor], open_clip.get_tokenizer("ViT-H-14"))
    own = Tokenizer.from_file(str(file))
    return lambda prompts: torch.tensor([e.ids for e in own.encode_batch(prompts)], dtype=torch.long)

"""CLIP on the classes of `transformers`, shared by the rewards that stand on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image
from torch import Tensor, nn

from rewardzoo.resize import ShortestAndCrop
from rewardzoo.rewards._images import normalize, to_tensor
from rewardzoo.rewards._weights import load_strictly, read_checkpoint

Config = Mapping[str, Any]
Tokenize = Callable[[Sequence[str]], Tensor]
Resize = Literal["torchvision", "transformers", "floats"]
"""How an image becomes a square: see `pixels_of`."""

VIT_B_32: Config = {"projection_dim": 512, "text_config": {}, "vision_config": {}}
"""OpenAI's ViT-B/32: the defaults of `transformers.CLIPConfig`, quick GELU included."""

VIT_L_14: Config = {
    "projection_dim": 768,
    "text_config": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
    },
}
"""OpenAI's ViT-L/14, with quick GELU."""

VIT_H_14: Config = {
    "projection_dim": 1024,
    "text_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
    },
    "vision_config": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "patch_size": 14,
        "hidden_act": "gelu",
    },
}
"""LAION's ViT-H/14, with plain GELU."""

MINI: Config = {
    "projection_dim": 128,
    "text_config": {
        "vocab_size": 46,
        "max_position_embeddings": 32,
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "hidden_act": "gelu",
    },
    "vision_config": {
        "image_size": 64,
        "patch_size": 8,
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "hidden_act": "gelu",
    },
}
"""The network of the minis."""


def build(config: Config) -> nn.Module:
    """Build a `CLIPModel` with random weights; `config` has the keys of its `config.json`."""
    from transformers import CLIPModel

    return CLIPModel(_config(config))


def load(config: Config, path: Path) -> nn.Module:
    """Build a `CLIPModel` and read its weights from `path`."""
    from transformers.initialization import no_init_weights

    with no_init_weights():
        net = build(config)
    load_strictly(net, without_positions(read_checkpoint(path)), path)
    return net


def load_vision(config: Config, path: Path) -> nn.Module:
    """Build the image tower and its projection alone, from the checkpoint of a whole `CLIPModel`."""
    from transformers import CLIPVisionModelWithProjection
    from transformers.initialization import no_init_weights

    vision = _config(config).vision_config
    vision.projection_dim = config["projection_dim"]
    with no_init_weights():
        net = CLIPVisionModelWithProjection(vision)
    state = without_positions(read_checkpoint(path))
    kept = {k: v for k, v in state.items() if k.startswith(("vision_model.", "visual_projection."))}
    load_strictly(net, kept, path)
    return net


def without_positions(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop the positions 0, 1, 2 … that older `transformers` saved; newer ones count them anew."""
    return {key: weight for key, weight in state.items() if not key.endswith(".position_ids")}


def _config(config: Config) -> Any:
    from transformers import CLIPConfig

    # 2 stands for CLIP's own way of finding the end of a prompt: the place of the highest id.
    text = {**config["text_config"], "bos_token_id": None, "eos_token_id": 2}
    return CLIPConfig(
        projection_dim=config["projection_dim"],
        text_config=text,
        vision_config=dict(config["vision_config"]),
    )


def encode_images(net: nn.Module, pixel_values: Tensor) -> Tensor:
    """Embed (N, 3, S, S) as unit vectors (N, D)."""
    pooled: Tensor = cast(Any, net).get_image_features(pixel_values=pixel_values).pooler_output
    return F.normalize(pooled, dim=-1)


def encode_prompts(net: nn.Module, input_ids: Tensor) -> Tensor:
    """Embed tokens (N, L) as unit vectors (N, D), read at the end token; what follows it has no effect."""
    pooled: Tensor = cast(Any, net).get_text_features(input_ids=input_ids).pooler_output
    return F.normalize(pooled, dim=-1)


def pixels_of(image: Image.Image, size: int, resize: Resize) -> Tensor:
    """Resize the shortest side, crop the middle, normalise: (3, size, size).

    "torchvision" and "transformers" resize bytes with PIL's bicubic filter and differ in where an odd crop
    begins. "floats" is torchvision's `Resize` without a filter named, on float tensors: antialiased bilinear.
    """
    if resize == "floats":
        return normalize(_resize_floats(to_tensor(image), size))
    step = ShortestAndCrop(size, round_corner=resize == "torchvision")
    return normalize(to_tensor(step(image)))


def _resize_floats(pixels: Tensor, size: int) -> Tensor:
    height, width = pixels.shape[1:]
    if min(height, width) != size:
        long = int(size * max(height, width) / min(height, width))
        height, width = (size, long) if height <= width else (long, size)
        pixels = F.interpolate(pixels[None], size=(height, width), mode="bilinear", antialias=True)[0]
    top, left = round((height - size) / 2), round((width - size) / 2)
    return pixels[:, top : top + size, left : left + size]


def tokenizer(file: Path, length: int, *, fill: bool = False) -> Tokenize:
    """Return the tokenizer in `file`, a `tokenizer.json` of the hub: prompts -> ids (N, L).

    Prompts are cut to `length` with the end token kept, and padded with it to the longest, or to `length`
    where `fill` is set.
    """
    from tokenizers import Tokenizer

    own = Tokenizer.from_file(str(file))
    own.enable_truncation(length)
    end = own.get_vocab_size() - 1  # the highest id
    own.enable_padding(length=length if fill else None, pad_id=end, pad_token=own.id_to_token(end))
    return lambda prompts: torch.tensor([e.ids for e in own.encode_batch(list(prompts))], dtype=torch.long)


def tokenizer_without_end(file: Path, length: int) -> Tokenize:
    """Return the tokenizer in `file` with long prompts cut short, end token and all: ids (N, L)."""
    from tokenizers import Tokenizer

    own = Tokenizer.from_file(str(file))
    own.no_truncation()
    end = own.get_vocab_size() - 1
    own.enable_padding(pad_id=end, pad_token=own.id_to_token(end))
    return lambda prompts: torch.tensor(
        [e.ids[:length] for e in own.encode_batch(list(prompts))], dtype=torch.long
    )


def openai_tokenizer() -> Tokenize:
    """Return OpenAI's own tokenizer, which mends broken text and unescapes HTML first: ids (N, 77)."""
    import open_clip
    import regex  # type: ignore[import-untyped]

    own = open_clip.SimpleTokenizer()
    # A prompt may spell the tokens that begin and end it, which OpenAI writes otherwise than open_clip.
    for theirs, ours in (("<start_of_text>", "<|startoftext|>"), ("<end_of_text>", "<|endoftext|>")):
        own.encoder[ours] = own.encoder.pop(theirs)
        del own.cache[theirs]
        own.cache[ours] = ours
        pattern = own.pat.pattern.replace(theirs, regex.escape(ours))
        own.pat = regex.compile(pattern, own.pat.flags)
    return lambda prompts: cast(Tensor, own(list(prompts)))

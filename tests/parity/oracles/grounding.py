"""Write the fixtures of `grounding` with T2I-R1's own reward and its own copy of GroundingDINO.

Upstream: https://github.com/CaraJ7/T2I-R1 at 2d9d4d1af4119953b3a8541f914f85481d7e1e76, Apache-2.0.
    git clone https://github.com/CaraJ7/T2I-R1 && git -C T2I-R1 checkout 2d9d4d1
    ENV/bin/python tests/parity/oracles/grounding.py --upstream T2I-R1 --out tests/parity/fixtures
ENV: requirements/grounding.txt.

`utils.reward_gdino.GDino` scores, unmodified, through its `__init__` and `__call__`. Not upstream's are:
- Swin and BERT, smaller than upstream's table of Swins and BERT-base allow: `build_swin_transformer` and the
  folder that `text_encoder_type` names are ours. The width stays 256: upstream's code relies on it.
- All weights are drawn here: views of a few small storages, so that the file is small. Some biases are set
  so that confidences lie about the threshold, and so that about three in ten widths lie below 0.001 and as
  many heights above 0.999 where upstream's `inverse_sigmoid`, which limits them, gets them.
- Images are resized to 112 and 200 instead of 800 and 1333 by upstream's own class.
- Images are converted to RGB first, which upstream leaves to its caller.
- `grounding-fixed`: upstream's `get_grounding_output` detects; the score is computed here, from the rules in
  `docs/rewards.md`, for upstream has no such rules.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import zlib
from pathlib import Path
from types import SimpleNamespace

import torch
from PIL import Image

INPUTS = Path(__file__).parents[1] / "inputs"
COMMIT = "2d9d4d1af4119953b3a8541f914f85481d7e1e76"
QUERIES = 24
SIDES = (112, 200)
SWIN = {"embed_dim": 8, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 2, 4], "window_size": 7}
BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
}
LAYERS = {"encoder_layers": 2, "decoder_layers": 2}
WORDS = """
    a an the of on in at and is to with for over under dog cat red blue green yellow circle square triangle
    star photo tree lamp chair book table mountain sky fog horse moon fish bird house boat ball car
    cafe street town sea sun paper towel roll ice cream cone toy train set left right queen glass water
"""


def vocabulary() -> list[str]:
    """A small uncased BERT vocabulary: letters, signs, some words and some word pieces."""
    signs = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    pieces = [f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789"] + [
        "##ing",
        "##er",
        "##s",
        "##ed",
        "##tain",
    ]
    letters = list("一只猫坐ελνρсобה한🐱")
    return [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *signs,
        *pieces,
        *letters,
        *dict.fromkeys(WORDS.split()),
    ]


def write_bert(folder: Path, words: list[str]) -> None:
    """What `AutoTokenizer` and `AutoConfig` read of bert-base-uncased."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    config = {"model_type": "bert", "vocab_size": len(words), "type_vocab_size": 2, **BERT}
    (folder / "config.json").write_text(json.dumps(config))
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


class Pools:
    """Random numbers in a few small storages; tensors are overlapping views of them."""

    def __init__(self, seed: int, size: int = 12_000) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.noise = {
            std: torch.randn(size, generator=generator) * std for std in (0.03, 0.07, 0.15, 0.3, 0.6, 1.0)
        }
        self.scale = 1 + 0.15 * torch.randn(size, generator=generator)

    def draw(self, name: str, shape: torch.Size, std: float) -> torch.Tensor:
        pool = self.scale if std == 0 else self.noise[min(self.noise, key=lambda s: abs(s - std))]
        start = zlib.crc32(name.encode()) % (pool.numel() // 2)
        columns = shape[1:].numel() if len(shape) > 1 else shape.numel()
        rows = shape[0] if len(shape) > 1 else 1
        step = max(1, (pool.numel() - start - columns) // rows)
        strides = [step, *torch.empty(shape[1:]).stride()] if len(shape) > 1 else [1]
        return pool.as_strided(shape, strides, start)


def weights(state: dict[str, torch.Tensor], pools: Pools) -> dict[str, torch.Tensor]:
    """Draw every floating-point weight of a state dict anew, scaled to its kind."""
    drawn = {}
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            drawn[name] = tensor.clone()
            continue
        std = 0.15
        if name.endswith("weight") and tensor.ndim == 1:
            std = 0.0  # a norm's
        elif "gamma_" in name or "vision_param" in name or "text_param" in name:
            std = 0.3
        elif (
            "sampling_offsets.bias" in name or "embed.weight" in name or "position_embeddings.weight" in name
        ):
            std = 1.0
        elif "relative_position_bias" in name or "level_embed" in name or "embeddings." in name:
            std = 0.6
        elif tensor.ndim > 1:
            std = 1.5 / tensor[0].numel() ** 0.5
        drawn[name] = pools.draw(name, tensor.shape, std)
    return drawn


def balance(
    drawn: dict[str, torch.Tensor], norm: str, text: str, pools: Pools, push: float, spread: float
) -> None:
    """Move confidences to about the threshold.

    A confidence is the product of the decoder's last norm and the text's: the first is made small, and its
    bias opposite to the second's.
    """
    width = drawn[norm + ".weight"].shape
    direction = pools.draw("direction", width, 1.0)
    drawn[norm + ".weight"] = pools.draw(norm, width, 0) * spread
    drawn[norm + ".bias"] = pools.draw(norm, width, 0.03) - push * direction
    drawn[text + ".bias"] = pools.draw(text, width, 0.15) + 0.5 * direction
    for name in [name for name in drawn if "bbox_embed" in name and name.endswith("layers.2.bias")]:
        drawn[name] = torch.tensor([0.1, -0.1, 2.6, 0.2])  # larger boxes, that overlap
    # the boxes before the decoder: some widths below 0.001, some heights above 0.999
    first = "transformer.enc_out_bbox_embed.layers.2"
    drawn[first + ".bias"] = torch.tensor([0.1, -0.1, -4.5, 8.0])
    drawn[first + ".weight"] = drawn[first + ".weight"] * torch.tensor([1.0, 1.0, 1.0, 5.0])[:, None]


LOCALITIES = (
    "on side of", "next to", "near", "on the left of", "on the right of", "on the bottom of", "on the top of",
    "on top of", "right of", "left of", "below", "above", "behind",
)  # fmt: skip

LEFT_OUT = {28, 29, 32, 34, 35, 36, 38}  # of the shared pairs: their images and kinds of prompt are in others


def ask(i: int, prompt: str) -> dict:
    """Turn the words of a shared prompt into a question as T2I-R1's data have it."""
    words = prompt.split()
    if not words:
        return {"nouns": [], "task_type": "object"} if prompt == "" else {}
    if len(words) > 60:
        return {"nouns": list(dict.fromkeys(words)), "task_type": "non"}
    nouns = list(dict.fromkeys([words[-1], " ".join(words[:2]), words[len(words) // 2]]))
    kind = ("spatial", "numeracy", "spatial", "color")[i % 4]
    if kind == "spatial" and len(nouns) > 1:
        spatial = {"obj1": nouns[0], "obj2": nouns[1], "locality": LOCALITIES[i % len(LOCALITIES)]}
        return {"nouns": nouns[:2], "task_type": kind, "spatial_info": spatial}
    if kind == "numeracy":
        counts = [{"obj_name": noun, "num": 1 + (i + j) % 4} for j, noun in enumerate(nouns)]
        return {"nouns": nouns, "task_type": kind, "numeracy_info": counts}
    return {"nouns": nouns, "task_type": "color"}


def spatial(a: str, locality: str, b: str) -> dict:
    return {
        "nouns": [a, b],
        "task_type": "spatial",
        "spatial_info": {"obj1": a, "obj2": b, "locality": locality},
    }


def numeracy(**counts: int) -> dict:
    rows = [{"obj_name": name, "num": count} for name, count in counts.items()]
    return {"nouns": list(counts), "task_type": "numeracy", "numeracy_info": rows}


EXTRA = [
    *(("odd.png", spatial("cat", word, "a photo")) for word in LOCALITIES),
    *(("stripes.png", spatial("horse", word, "star")) for word in ("near", "left of", "right of", "below")),
    ("large.png", spatial("dog", "left of", "dog")),
    ("large.png", {"nouns": ["ice cream cone", "roll of paper towel", "teddy bear"], "task_type": "non"}),
    ("tall.png", {"nouns": ["dog", "dog", "cat"], "task_type": "object"}),
    ("odd.png", {"nouns": ["TV", "CafÉ", "a. b", "what?"], "task_type": "complex"}),
    ("grey.png", {"nouns": [" dog", "cat ", "red  ball"], "task_type": "complex"}),
    *(("photo.jpg", numeracy(dog=n, house=n + 1)) for n in (1, 2)),
    *(("stripes.png", numeracy(bird=n)) for n in (4, 5, 7, 9, 10, 11)),
    ("portrait.png", {"objects": [{"name": "dog", "count": 2}, {"name": "cat", "count": 1}]}),
    ("portrait.png", {"objects": ["moon"], "relations": [["dog", "left of", "cat"]]}),
]
FIXED = [
    *(
        ("odd.png", {"relations": [["a photo", word, "cat"]]})
        for word in ("on top of", "beneath", "beside", "left of", "right of")
    ),
    *(("photo.jpg", {"relations": [["dog", word, "house"]]}) for word in ("near", "right of", "left of")),
    *(("tall.png", {"relations": [["dog", word, "cat"]]}) for word in ("near", "over", "to the left of")),
    (
        "square.png",
        {"objects": ["ice cream cone", "  roll of   paper towel ."], "relations": [["dog", "above", "sea"]]},
    ),
    ("noise.png", {"objects": [{"name": "boat", "count": 0}, {"name": "dog", "count": 2}, "glass of water"]}),
    ("photo.webp", {"relations": [["dog", "left of", "cat"], ["cat", "above", "fish"]], "objects": ["moon"]}),
]


def plain(metadata: dict) -> dict:
    """Turn our schema into T2I-R1's fields: one kind of question."""
    if "objects" not in metadata and "relations" not in metadata:
        return metadata
    rows = [{"name": o} if isinstance(o, str) else o for o in metadata.get("objects", [])]
    nouns = [row["name"] for row in rows]
    for a, word, b in metadata.get("relations", []):
        return {**spatial(a, word, b), "nouns": nouns + [n for n in (a, b) if n not in nouns]}
    counts = [{"obj_name": row["name"], "num": row["count"]} for row in rows if "count" in row]
    return {"nouns": nouns, "task_type": "numeracy" if counts else "object", "numeracy_info": counts}


def corners(row: dict) -> list[float]:
    (x, y), (w, h) = row["centre"], row["size"]
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


def detections(boxes, phrases, logits, names: list[str]) -> list[dict]:
    """Upstream's detections, sorted as ours are: by name, then by confidence."""
    scores = torch.cat(logits).tolist() if logits else []
    rows = [
        {"name": phrase, "score": score, "centre": box[:2], "size": box[2:]}
        for box, phrase, score in zip(boxes.tolist(), phrases, scores, strict=True)
        if phrase in names
    ]
    return sorted(rows, key=lambda row: (names.index(row["name"]), -row["score"]))


def remember(judge) -> None:
    """Keep what `get_grounding_output` returns by image and caption, for the details and for the next row."""
    detect, kept = judge.get_grounding_output, {}

    def detect_once(image, caption, *args, **kwargs):
        key = (image.shape, image.numpy().tobytes(), caption, repr(kwargs))
        if key not in kept:
            kept[key] = detect(image, caption, *args, **kwargs)
        boxes, phrases, logits = kept[key]
        return boxes.clone(), phrases, logits  # `get_spatial_score` writes into the boxes

    judge.get_grounding_output = detect_once


def score_as_t2i_r1(judge, image: Image.Image, metadata: dict) -> tuple[float, dict]:
    """Upstream's score through `__call__`, and its detections."""
    fields = plain(metadata)
    prompt, spans = judge.make_prompt(fields["nouns"]) if fields["nouns"] else ("", [])
    kwargs = {key: [fields.get(key)] for key in ("nouns", "task_type", "spatial_info", "numeracy_info")}
    kwargs["det_prompt"] = [{"text_prompt": prompt, "token_spans": spans}]
    (score,) = judge(prompts=[""], images=[image.copy()], **kwargs)
    if not fields["nouns"]:
        return float(score), {"detections": []}
    pixels, _ = judge.transform(image, None)
    found = judge.get_grounding_output(pixels, prompt, judge.box_threshold, None, token_spans=spans)
    return float(score), {"detections": detections(*found, names=list(dict.fromkeys(fields["nouns"])))}


SAME = {
    "left of": ("left of", "on the left of", "to the left of"),
    "right of": ("right of", "on the right of", "to the right of"),
    "above": ("above", "on top of", "on the top of", "over"),
    "below": ("below", "on the bottom of", "beneath"),
    "near": ("near", "next to", "on side of", "beside"),
}


def score_as_fixed(judge, image: Image.Image, metadata: dict) -> tuple[float, dict]:
    """The score by the mended rules, of upstream's detections."""
    tidy = lambda name: " ".join(name.split()).rstrip(" .")  # noqa: E731
    relations, counts, alone = [], [], []
    if "nouns" in metadata:
        nouns = [tidy(n) for n in metadata["nouns"]]
        if metadata["task_type"] == "spatial":
            info = metadata["spatial_info"]
            relations = [(info["obj1"], info["locality"], info["obj2"])]
        elif metadata["task_type"] == "numeracy":
            counts = [(row["obj_name"], row["num"]) for row in metadata["numeracy_info"]]
        else:
            alone = list(nouns)
    else:
        rows = [{"name": o} if isinstance(o, str) else o for o in metadata.get("objects", [])]
        relations = [tuple(row) for row in metadata.get("relations", [])]
        nouns = [tidy(row["name"]) for row in rows]
        counts = [(row["name"], row["count"]) for row in rows if "count" in row]
        related = {tidy(n) for a, _, b in relations for n in (a, b)}
        alone = [tidy(r["name"]) for r in rows if "count" not in r and tidy(r["name"]) not in related]
        nouns += [tidy(n) for a, _, b in relations for n in (a, b)]
    nouns = list(dict.fromkeys(nouns))
    prompt, spans = " . ".join(nouns) + ".", []
    for noun in nouns:
        start = spans[-1][0][1] + 3 if spans else 0
        spans.append([[start, start + len(noun)]])
    pixels, _ = judge.transform(image, None)
    found = judge.get_grounding_output(pixels, prompt, judge.box_threshold, None, token_spans=spans)
    rows = detections(*found, names=nouns)
    of = {noun: [row for row in rows if row["name"] == noun] for noun in nouns}
    parts = []
    for a, word, b in relations:
        (word,) = (name for name, words in SAME.items() if word in words)
        parts.append(0.25 * bool(of[tidy(a)]) + 0.25 * bool(of[tidy(b)]))
        if of[tidy(a)] and of[tidy(b)]:
            parts[-1] += 0.5 * stands(word, corners(of[tidy(a)][0]), corners(of[tidy(b)][0]), image.size)
    for name, wanted in counts:
        boxes = of.get(tidy(name), [])
        kept = []
        if boxes:
            from torchvision.ops import nms

            kept = nms(
                torch.tensor([corners(r) for r in boxes]), torch.tensor([r["score"] for r in boxes]), 0.5
            )
        parts.append(1.0 if len(kept) == wanted else 0.2 if len(kept) and wanted else 0.0)
    parts += [float(bool(of[name])) for name in alone]
    return sum(parts) / len(parts), {"detections": rows}


def stands(word: str, a: list[float], b: list[float], size: tuple[int, int]) -> float:
    """How far box `a` stands so to box `b`: in pixels of the image here."""
    width, height = size
    a, b = ([box[0] * width, box[1] * height, box[2] * width, box[3] * height] for box in (a, b))
    dx, dy = (b[0] + b[2] - a[0] - a[2]) / 2, (b[1] + b[3] - a[1] - a[3]) / 2
    if word == "near":
        return min(1.0, max(size) * 150 / 480 / max(abs(dx), abs(dy), 1e-9))
    holds = {
        "left of": dx > abs(dy),
        "right of": -dx > abs(dy),
        "above": dy > abs(dx),
        "below": -dy > abs(dx),
    }[word]
    inter = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    iou = inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)
    return float(holds) * min(1.0, 0.1 / max(iou, 1e-9))


def pairs_of(judge, score, rows: list[tuple[str, str, dict]], errors) -> list[dict]:
    pairs = []
    for image, prompt, metadata in rows:
        row = {"image": image, "prompt": prompt, "metadata": metadata}
        error = errors(metadata)
        if error is None:
            picture = Image.open(INPUTS / image)
            value, details = score(judge, picture.convert("RGB"), metadata)
            row |= {"converted": picture.mode != "RGB", "score": value, "details": details, "error": None}
        else:
            row |= {"score": None, "details": {}, "error": error}
        pairs.append(row)
    return pairs


def refused_by_both(metadata: dict) -> str | None:
    return None if metadata else "metadata must say what to look for"


def refused_by_fixed(metadata: dict) -> str | None:
    if not metadata or metadata.get("nouns") == []:
        return "metadata must say what to look for" if not metadata else "there is nothing to look for"
    info = metadata.get("spatial_info")
    if info and info["obj1"] == info["obj2"]:
        return "cannot be told from boxes"
    if info and not any(info["locality"] in words for words in SAME.values()):
        return f"no relation '{info['locality']}'"
    return None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--upstream", type=Path, required=True, help="a checkout of CaraJ7/T2I-R1")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", help="write this case alone (and the checkpoint it shares)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    source = args.upstream.resolve() / "src" / "t2i-r1" / "src"
    sys.path[:0] = [str(source), str(source / "utils" / "GroundingDINO")]
    out = args.out.resolve()
    shared = out / "grounding-t2i-r1"
    words = vocabulary()
    work = Path(tempfile.mkdtemp())
    write_bert(work / "bert", words)
    shared.mkdir(parents=True, exist_ok=True)
    (shared / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")

    from groundingdino.models.GroundingDINO.backbone import backbone as backbone_module
    from groundingdino.models.GroundingDINO.backbone.swin_transformer import SwinTransformer
    from utils.reward_gdino import GDino

    backbone_module.build_swin_transformer = lambda name, **kw: SwinTransformer(**{**kw, **SWIN})
    config = (source / "utils/GroundingDINO/groundingdino/config/GroundingDINO_SwinT_OGC.py").read_text()
    config += f"\nenc_layers = {LAYERS['encoder_layers']}\ndec_layers = {LAYERS['decoder_layers']}\n"
    config += f"dim_feedforward = 64\nnheads = 4\nnum_queries = {QUERIES}\nuse_checkpoint = False\n"
    config += f"use_transformer_ckpt = False\ntext_encoder_type = {str(work / 'bert')!r}\n"
    (work / "config.py").write_text(config)
    checkpoint = shared / "groundingdino.pth"
    upstream = SimpleNamespace(gdino_ckpt_path=str(checkpoint), gdino_config_path=str(work / "config.py"))

    from groundingdino.models import build_model
    from groundingdino.util.slconfig import SLConfig

    blank = SLConfig.fromfile(str(work / "config.py"))
    blank.device = "cpu"
    pools = Pools(seed=9)
    drawn = weights(build_model(blank).state_dict(), pools)
    for key in [key for key in drawn if "bbox_embed.1." in key]:
        drawn[key] = drawn[key.replace("bbox_embed.1.", "bbox_embed.0.")]  # one head
    for key in [key for key in drawn if key.startswith("transformer.decoder.bbox_embed.")]:
        drawn[key] = drawn[key.removeprefix("transformer.decoder.")]
    last = LAYERS["encoder_layers"] - 1
    text = f"transformer.encoder.text_layers.{last}.norm2"
    balance(drawn, "transformer.decoder.norm", text, pools, *PUSH)
    drawn["label_enc.weight"] = pools.draw("label_enc", torch.Size([3, 256]), 0.3)  # as the released file has
    torch.save({"model": {f"module.{key}": value for key, value in drawn.items()}}, checkpoint)

    import groundingdino.datasets.transforms as transforms

    judge = GDino(upstream)
    judge.load_to_device("cpu")
    remember(judge)
    released = judge.transform
    judge.transform = transforms.Compose(
        [transforms.RandomResize([SIDES[0]], max_size=SIDES[1]), *released.transforms[1:]]
    )
    shared_rows = [
        (row["image"], row["prompt"], ask(i, row["prompt"]))
        for i, row in enumerate(json.loads((INPUTS / "pairs.json").read_text(encoding="utf-8")))
        if i not in LEFT_OUT
    ]
    extra = [(image, "", metadata) for image, metadata in EXTRA]
    fields = {
        "backbone_config": {"model_type": "swin", "out_indices": [2, 3, 4], **SWIN},
        "text_config": {"model_type": "bert", "vocab_size": len(words), **BERT},
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "num_queries": QUERIES,
        "sides": SIDES,
        **LAYERS,
    }
    import torchvision
    import transformers

    environment = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "transformers": transformers.__version__,
    }

    def write(name: str, variant: str, config: dict, files: dict, oracle: str, score_pairs) -> None:
        if args.only not in (None, name):
            return
        pairs = score_pairs()
        case = {
            "reward": f"grounding:{variant}",
            "recipe": f"grounding/{variant}",
            "config": config,
            "files": files,
            "oracle": {"name": oracle, "commit": COMMIT, "environment": environment, "dtype": "float32"},
            "tolerance": 1e-5,
            "pairs": pairs,
        }
        (out / name).mkdir(parents=True, exist_ok=True)
        rows = ",\n".join(json.dumps(pair, ensure_ascii=False) for pair in pairs)
        text = json.dumps({**case, "pairs": []}, indent=1)[:-4] + f"[\n{rows}\n]\n}}\n"
        (out / name / "case.json").write_text(text, encoding="utf-8")
        scores = [round(p["score"], 3) for p in pairs if p["score"] is not None]
        seen = [len(p["details"]["detections"]) for p in pairs if p["score"] is not None]
        print(
            name,
            len(pairs),
            "pairs; scores",
            sorted({s: scores.count(s) for s in scores}.items()),
            "boxes",
            seen,
        )

    files = {"checkpoint": "groundingdino.pth", "vocabulary": "vocab.txt"}
    write(
        "grounding-t2i-r1", "t2i-r1", fields, files, "T2I-R1, utils/reward_gdino.py",
        lambda: pairs_of(judge, score_as_t2i_r1, shared_rows + extra, refused_by_both),
    )  # fmt: skip
    more = [(image, "", metadata) for image, metadata in FIXED]
    write(
        "grounding-fixed", "fixed", fields,
        {key: f"../grounding-t2i-r1/{name}" for key, name in files.items()},
        "T2I-R1, utils/reward_gdino.py's detections; rules by the oracle script",
        lambda: pairs_of(judge, score_as_fixed, shared_rows + extra[::3] + more, refused_by_fixed),
    )  # fmt: skip


PUSH = (0.0125, 0.1)

if __name__ == "__main__":
    main()

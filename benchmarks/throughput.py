"""Pairs a second by batch size, beside upstream's way of one pair a call, and what bfloat16 changes.

    python benchmarks/throughput.py [NAMES...] [--device cuda] [--batches 1,8,32,128] [--small]

Full-size architectures with random weights: hpsv2 (ViT-H/14), imagereward (BLIP ViT-L/16) and vqascore
(Qwen2.5-VL-7B). The baseline runs the same network as upstream's scorers do: each pair prepared and
scored alone, its score fetched before the next is begun. `--small` swaps in small networks, to try the
script.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray

import rewardzoo.rewards
from rewardzoo.rewards import RewardModel, hpsv2, imagereward, pick_device, resolve, vqascore
from rewardzoo.rewards._vlm import VisionLanguageModel
from rewardzoo.rewards._vlm_files import read_images, read_tokenizer

SIDE = 512
SECONDS = 5.0
MINIS = Path(rewardzoo.rewards.__file__).parent / "minis"
QWEN = Path(__file__).parent.parent / "tests/parity/fixtures/_shared/vqascore-qwen2.5-vl"


def build_hpsv2(small: bool) -> RewardModel:
    net = hpsv2.build(hpsv2.MINI_CONFIG if small else {})
    words = MINIS / "hpsv2/tokenizer.json" if small else None
    return hpsv2.HPSv2(resolve("hpsv2:v2.1")[1], net, hpsv2.tokenizer(words))


def build_imagereward(small: bool) -> RewardModel:
    net = imagereward.RankedBlip(imagereward.MINI_CONFIG if small else {})
    words = imagereward.tokenizer(MINIS / "imagereward/vocab.txt")
    return imagereward.ImageReward(resolve("imagereward:v1.0")[1], net, words)


def build_vqascore(small: bool) -> RewardModel:
    """Qwen2.5-VL-7B's sizes; the small tokenizer of the parity tests, whose ids are among the large one's."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config: Any = Qwen2_5_VLConfig.from_pretrained(QWEN)
    if not small:
        marks = {name: getattr(config, name) for name in ("image_token_id", "video_token_id")}
        config = Qwen2_5_VLConfig(**marks)
        config.vision_config.out_hidden_size = config.text_config.hidden_size
    net = Qwen2_5_VLForConditionalGeneration(config)
    vlm = VisionLanguageModel(net, read_tokenizer(QWEN), read_images(QWEN, net))
    return vqascore.VQAScore(resolve("vqascore:qwen2.5-vl-7b")[1], vlm)


BUILDERS: dict[str, Callable[[bool], RewardModel]] = {
    "hpsv2": build_hpsv2,
    "imagereward": build_imagereward,
    "vqascore": build_vqascore,
}


def pairs(n: int) -> tuple[list[NDArray[np.uint8]], list[str]]:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for _ in range(n)]
    return images, [f"a picture of {i} red circles left of a blue square" for i in range(n)]


def rate(work: Callable[[], object], n: int) -> float:
    """Pairs a second of `work`, which scores `n`, over some seconds after one round to warm up."""
    work()
    rounds, started = 0, time.perf_counter()
    while time.perf_counter() - started < SECONDS:
        work()
        rounds += 1
    return round(rounds * n / (time.perf_counter() - started), 2)


def one_by_one(model: RewardModel, images: Sequence[Any], prompts: Sequence[str]) -> None:
    for image, prompt in zip(images, prompts, strict=True):
        model.run(model.prepare([image], [prompt]))


def measure(model: RewardModel, batches: Sequence[int]) -> dict[str, Any]:
    images, prompts = pairs(max(batches))
    found: dict[str, Any] = {"device_pairs_per_second": {}, "with_preparing": {}}
    for n in batches:
        batch = model.prepare(images[:n], prompts[:n])

        def prepare_and_run(n: int = n) -> object:
            return model.run(model.prepare(images[:n], prompts[:n]))

        found["device_pairs_per_second"][n] = rate(lambda batch=batch: model.run(batch), n)
        found["with_preparing"][n] = rate(prepare_and_run, n)
    few = min(8, max(batches))
    found["one_pair_a_call"] = rate(lambda: one_by_one(model, images[:few], prompts[:few]), few)
    return found


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Which; all by default.")] = None,
    device: Annotated[str, typer.Option(help="A torch device, or auto.")] = "auto",
    batches: Annotated[str, typer.Option(help="Batch sizes.")] = "1,8,32,128",
    small: Annotated[bool, typer.Option(help="Small networks, to try the script.")] = False,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    place = pick_device(device)
    sizes = [int(size) for size in batches.split(",")]
    on_cuda = place.type == "cuda"
    hardware = (
        torch.cuda.get_device_name(place) if on_cuda else f"{platform.machine()}, {os.cpu_count()} CPUs"
    )
    result: dict[str, Any] = {
        "hardware": hardware,
        "torch": torch.__version__,
        "image_side": SIDE,
        "small": small,
        "rewards": {},
    }
    for name in names or BUILDERS:
        torch.manual_seed(0)
        with torch.device(place):
            net = BUILDERS[name](small)
        model = net.to(place)
        images, prompts = pairs(32)
        exact = np.array(model.score(images, prompts))
        found = {"float32": measure(model, sizes)} if name != "vqascore" or small else {}
        model.to(place, torch.bfloat16)
        rounded = np.array(model.score(images, prompts))
        found["bfloat16"] = {
            **measure(model, sizes),
            "largest_deviation_from_float32": float(np.abs(rounded - exact).max()),
            "spread_of_float32_scores": float(exact.std()),
        }
        result["rewards"][name] = found
        del net, model
        if on_cuda:
            torch.cuda.empty_cache()
    print(json.dumps(result, indent=1))
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)

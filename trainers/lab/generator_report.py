"""How often a generator of the lab draws what it was asked for, by the exact judge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from rewardzoo.trainers.lab.prompts import prompt_of, sample_prompts
from rewardzoo.trainers.lab.render import render
from rewardzoo.trainers.lab.scene import CATEGORIES, Split, sample_scene
from rewardzoo.trainers.lab.verdict import Verdict, judge
from rewardzoo.trainers.lab.vq import reconstruct
from rewardzoo.trainers.policies import ARImagePolicy, JanusPolicy, Sampling

_AT_ONCE = 256
_SHOWN = 8
_ZOOM = 2


def suggested_sampling(policy: JanusPolicy) -> Sampling:
    """The guidance scale and temperature that a generator's own `generation_config` suggests."""
    suggested = policy.janus.generation_config
    return Sampling(guidance_scale=suggested.guidance_scale, temperature=suggested.temperature)


def judge_samples(
    policy: ARImagePolicy, prompts: Sequence[str], samples: int, sampling: Sampling, seed: int
) -> list[list[Verdict]]:
    """Sample `samples` pictures for each prompt and judge them."""
    uniforms = torch.rand(
        len(prompts) * samples,
        policy.tokens_per_image,
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(seed),
    )
    repeated = [prompt for prompt in prompts for _ in range(samples)]
    verdicts: list[Verdict] = []
    for start in range(0, len(repeated), _AT_ONCE):
        some = repeated[start : start + _AT_ONCE]
        tokens = policy.sample(policy.encode(some), uniforms[start : start + _AT_ONCE], sampling).tokens
        images = policy.decode(tokens)
        verdicts += [judge(image, prompt) for image, prompt in zip(images, some, strict=True)]
    return [verdicts[start : start + samples] for start in range(0, len(verdicts), samples)]


def summarize(groups: Sequence[Sequence[Verdict]]) -> dict[str, float]:
    """Shares of right pictures, overall and by category, and of groups all right, all wrong and mixed."""
    verdicts = [verdict for group in groups for verdict in group]
    shares = {"right": float(np.mean([verdict.correct for verdict in verdicts]))}
    for category in CATEGORIES:
        holds = [held for verdict in verdicts if (held := verdict.categories[category]) is not None]
        shares[category] = sum(holds) / len(holds) if holds else math.nan
    rights = np.array([[verdict.correct for verdict in group] for group in groups]).mean(1)
    shares["all right"] = float((rights == 1).mean())
    shares["all wrong"] = float((rights == 0).mean())
    shares["mixed"] = 1 - shares["all right"] - shares["all wrong"]
    return shares


def report(folder: Path, seed: int, prompts: int = 1000, groups: int = 250, samples: int = 8) -> None:
    """Print what `summarize` says of both splits, at the sampling that the generator suggests.

    Shares of pictures are of one for each of the `prompts`; shares of groups are of `groups` of these prompts
    with `samples` pictures each.
    """
    policy = JanusPolicy.load(folder)
    sampling = suggested_sampling(policy)
    splits: tuple[Split, ...] = ("in_domain", "out_of_domain")
    for split in splits:
        asked = sample_prompts(prompts, split, seed)
        of_pictures = summarize(judge_samples(policy, asked, 1, sampling, seed))
        of_groups = summarize(judge_samples(policy, asked[:groups], samples, sampling, seed + 1))
        shares = of_pictures | {what: of_groups[what] for what in ("all right", "all wrong", "mixed")}
        print(split, {what: round(share, 3) for what, share in shares.items()}, flush=True)


def show(folder: Path, path: Path, seed: int) -> None:
    """Write a PNG: pictures of scenes, their reconstructions, and for their prompts three samples each.

    What the exact judge finds right has a green frame, what it does not a red one.
    """
    policy = JanusPolicy.load(folder)
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng) for _ in range(_SHOWN)]
    prompts = [prompt_of(scene, rng=rng) for scene in scenes]
    originals = np.stack([render(scene, rng) for scene in scenes])
    rows = [originals, reconstruct(policy.janus.model.vqmodel, originals)]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(3):
        uniforms = torch.rand(_SHOWN, policy.tokens_per_image, dtype=torch.float64, generator=generator)
        sampled = policy.sample(policy.encode(prompts), uniforms, suggested_sampling(policy))
        rows.append(policy.decode(sampled.tokens))
    _sheet(rows, prompts).save(path)


def _sheet(rows: Sequence[NDArray[np.uint8]], prompts: Sequence[str]) -> Image.Image:
    side, text, gap = rows[0].shape[1] * _ZOOM, 106, 8
    sheet = Image.new("RGB", ((side + gap) * len(prompts) + gap, (side + gap) * len(rows) + text), "white")
    pen = ImageDraw.Draw(sheet)
    for column, prompt in enumerate(prompts):
        x = gap + column * (side + gap)
        pen.multiline_text((x, 2), "\n".join(wrap(prompt, 22)), "black")
        for row, images in enumerate(rows):
            y = text + row * (side + gap)
            color = "green" if judge(images[column], prompt).correct else "red"
            pen.rectangle((x - 3, y - 3, x + side + 2, y + side + 2), color)
            sheet.paste(
                Image.fromarray(images[column]).resize((side, side), Image.Resampling.NEAREST), (x, y)
            )
    return sheet

"""The model card beside a trained critic's weights: what it learned from, how good it is, how it is used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rewardzoo.errors import require
from rewardzoo.rewards import RewardSpec, resolve
from rewardzoo.trainers.critic.config import CriticConfig
from rewardzoo.trainers.critic.quality import Floats, Labels, reliability

_PLOT = "reliability.png"
# The hub refuses a card with a licence or a base that it does not know.
_HUB_LICENSES = {
    "apache-2.0",
    "mit",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
    "openrail",
}


def write_card(
    config: CriticConfig,
    spec: RewardSpec,
    found: Mapping[str, Any],
    said: Mapping[str, tuple[Floats, Labels]],
) -> None:
    """Write `README.md`, and `reliability.png` of what was `said` of each split: (P(yes), labels)."""
    out = config.run.out
    draw_reliability(said, out / _PLOT)
    rows = [
        f"| {split} | {group} | {q['n']} | {q['base_rate']:.3f} | {q['accuracy']:.3f} | "
        f"{_number(q['auc'])} | {q['ece']:.3f} |"
        for split, groups in found["quality"].items()
        for group, q in groups.items()
    ]
    temperatures = ", ".join(f"{name} {value:.3f}" for name, value in found["temperatures"].items())
    fit = found["fit"]
    lines = [
        *_front_matter(config),
        "",
        f"# {spec.name}:{out.name}",
        "",
        f"{spec.title}, trained with rewardzoo from `{config.model.base}` ({spec.paper}).",
        "",
        "```sh",
        f"rewardzoo serve {spec.name}:{out}",
        "```",
        "",
        f"Licence of the weights: {config.model.weights_license}.",
        "",
        "## Data",
        "",
        *_said_of_data(config, found),
        "",
        "## Training",
        "",
        f"{fit['steps']} steps of {config.run.batch_size} rows; loss: {config.model.loss}; of validation: "
        f"{fit['validation_loss']:.4f}. All settings are in `config.yaml`.",
        "",
        "## Quality",
        "",
        "| split | question | rows | base rate | accuracy | AUC | ECE |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
        f"Temperatures, fitted on validation: {temperatures or 'none'}. ECE is the expected calibration "
        "error over 15 bins, at these temperatures.",
        "",
        f"![Reliability]({_PLOT})",
        "",
        f"SHA-256 of the weights: `{found['weights_sha256']}`",
        "",
    ]
    (out / "README.md").write_text("\n".join(lines), encoding="utf-8")


def draw_reliability(said: Mapping[str, tuple[Floats, Labels]], path: Path) -> None:
    """Plot the share of yes against P(yes), a line for each split; on the diagonal it is calibrated."""
    require("matplotlib", extra="train")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.plot([0, 1], [0, 1], color="0.7", linestyle="--", linewidth=1)
    for name, (p, labels) in said.items():
        mean, share, count = reliability(p, labels)
        axes.plot(mean, share, marker="o", markersize=4, label=f"{name} ({int(count.sum())})")
    axes.set_xlabel("P(yes), mean of the bin")
    axes.set_ylabel("share of yes")
    axes.legend()
    figure.savefig(path, dpi=120)


def _front_matter(config: CriticConfig) -> list[str]:
    name = config.model.weights_license.lower()
    repository = getattr(resolve(config.model.base)[1].files.get("checkpoint"), "repo", None)
    known_base = repository is not None and config.model.weights is None
    return [
        "---",
        f"license: {name if name in _HUB_LICENSES else 'other'}",
        "library_name: rewardzoo",
        *([f"base_model: {repository}"] if known_base else []),
        "---",
    ]


def _said_of_data(config: CriticConfig, found: Mapping[str, Any]) -> list[str]:
    data = config.data
    lines = [f"{found['rows']} rows to learn from."]
    if data.judge is not None and data.policy is not None:
        lines.append(
            f"Pictures of `{data.policy.name_or_path}` (guidance {data.sampling.guidance_scale:g}, "
            f"{data.images_per_prompt} a prompt), labelled by `{data.judge.reward}` at "
            f"{data.judge.threshold:g} and above. No prompt of a held-out split is among the training's."
        )
    return lines


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"

"""What a reward can be taught: to answer, or to prefer. One interface, so that there is one training loop."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rewardzoo.rewards import RewardModel, load
from rewardzoo.rewards._critic import Critic
from rewardzoo.rewards._trained import write_variant
from rewardzoo.rewards._weights import locate
from rewardzoo.trainers.critic.answers import answer_loss, collate, log_odds
from rewardzoo.trainers.critic.config import ModelSection
from rewardzoo.trainers.critic.preference import bradley_terry_loss
from rewardzoo.trainers.critic.records import balanced, pairs_of
from rewardzoo.trainers.policies import lora

MODEL = "model"
"""The folder of the weights in the trained variant's folder."""


@dataclass(frozen=True)
class Note:
    """What is known of a row without its pictures.

    `group` is what it asks; by that, and by `category`, quality is told apart. `picture` names the finished
    picture.
    """

    prompt: str
    label: float
    group: str
    category: str = ""
    picture: str = ""


class Rows(Sequence[Any]):
    """Rows whose pictures are read when they are asked for, and notes on each that are not."""

    def __init__(self, get: Callable[[int], Any], notes: Sequence[Note]) -> None:
        self._get, self.notes = get, notes

    def __len__(self) -> int:
        return len(self.notes)

    def __getitem__(self, index: Any) -> Any:
        return self._get(index)

    def select(self, places: Sequence[int]) -> Rows:
        """Return the rows at these places, in their order."""
        return Rows(lambda i: self._get(places[i]), [self.notes[place] for place in places])


class Task(nn.Module, ABC):
    """A reward that is being taught. A module whose `forward` is the loss, so that DDP and FSDP can wrap it.

    A row is whatever `rows` made of a data set; `forward` gives the loss of each of B rows (B,), `predict`
    what is said of each.
    """

    def __init__(self, reward: RewardModel) -> None:
        super().__init__()
        self.reward = reward
        self.net = reward.net

    @abstractmethod
    def rows(self, data: Any, *, seed: int | None) -> Rows:
        """Return the rows of a data set; with a seed, balanced for training."""

    @abstractmethod
    def batch(self, rows: Sequence[Any]) -> dict[str, Tensor]:
        """Prepare rows on the CPU. Thread-safe."""

    @abstractmethod
    def predict(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Log-odds (B,) of yes, or that the first is better."""

    @abstractmethod
    def save(self, folder: Path, temperatures: Mapping[str, float], weights_license: str) -> None:
        """Write the variant: weights, what its loader reads besides, and the manifest."""


class Answers(Task):
    """Teaches a critic (`orm`, `parm`) to answer yes or no, or in words."""

    def __init__(self, reward: Critic, model: ModelSection) -> None:
        super().__init__(reward)
        self.stages = model.stages
        core = cast(Any, reward.vlm.model)
        reward.net.requires_grad_(True)
        if not model.train_vision:
            for name, part in core.model.named_children():
                part.requires_grad_(name == "language_model")
        if model.lora is not None:
            lora.add(core, lora.LoRA(model.lora.rank, model.lora.alpha, model.lora.targets))
        if model.gradient_checkpointing:
            core.gradient_checkpointing_enable({"use_reentrant": False})

    @property
    def critic(self) -> Critic:
        """The reward."""
        return cast(Critic, self.reward)

    def rows(self, data: Any, *, seed: int | None) -> Rows:
        """Pick the stages that are taught; as many of yes as of no at each step."""
        known = ["prompt", "label", "stage", "step", "steps", "category", "picture"]
        columns = data.select_columns(known)[:]
        notes = [_note(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]
        wanted = [i for i, note in enumerate(notes) if note.group in self.stages]
        if seed is not None:
            # Potential is balanced at each step, the others as a whole.
            labels, groups = [], []
            for note in (notes[i] for i in wanted):
                labels.append(note.label)
                by_step = note.group == "potential"
                groups.append(f"{note.group} {note.category}" if by_step else note.group)
            wanted = [wanted[i] for i in balanced(labels, groups, np.random.default_rng(seed))]
        return Rows(lambda i: data[i], notes).select(wanted)

    def batch(self, rows: Sequence[Any]) -> dict[str, Tensor]:
        """Ask as serving does, answers beside; see `collate`."""
        images = [self.reward.prepare_image(row["image"].convert("RGB")) for row in rows]
        return collate(self.critic, images, rows)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Cross-entropy of the answers."""
        return answer_loss(self.critic, inputs)

    def predict(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Log-odds of yes."""
        return log_odds(self.critic, inputs)

    def save(self, folder: Path, temperatures: Mapping[str, float], weights_license: str) -> None:
        """Write it as `transformers` does, tokenizer and preprocessor beside."""
        vlm, place = self.critic.vlm, folder / MODEL
        vlm.model.save_pretrained(place, state_dict=lora.merged(vlm.model, vlm.model.state_dict()))
        vlm.tokenizer.save_pretrained(place)
        vlm.images.processor.save_pretrained(place)
        write_variant(
            folder,
            self.reward.spec.name,
            recipe=f"{self.reward.spec.name}/yes-no",
            files={"checkpoint": MODEL},
            weights_license=weights_license,
            config={"temperatures": dict(temperatures)},
        )


class Preference(Task):
    """Teaches any differentiable reward that of two pictures of a prompt the better one scores higher."""

    def __init__(self, reward: RewardModel, model: ModelSection) -> None:
        super().__init__(reward)
        self.scale = model.scale
        reward.net.requires_grad_(True)
        self.files = locate(reward.variant, model.weights)

    def rows(self, data: Any, *, seed: int | None) -> Rows:
        """Take rows of two pictures as they are, or pair finished pictures, a right with a wrong one."""
        if "image_a" in data.column_names:
            known = data.select_columns(["prompt", "label"])[:]
            labelled = zip(known["prompt"], known["label"], strict=True)
            return Rows(lambda i: data[i], [Note(prompt, label, "preference") for prompt, label in labelled])
        pairs = list(pairs_of(data.select_columns(["stage", "label", "prompt"])))
        swapped = np.random.default_rng(seed or 0).random(len(pairs)) < 0.5

        def get(i: int) -> dict[str, Any]:
            prompt, chosen, rejected = pairs[i]
            first, second = (rejected, chosen) if swapped[i] else (chosen, rejected)
            label = float(not swapped[i])
            images = {"image_a": data[first]["image"], "image_b": data[second]["image"]}
            return {"prompt": prompt, **images, "label": label}

        notes = [
            Note(prompt, float(not s), "preference") for (prompt, _, _), s in zip(pairs, swapped, strict=True)
        ]
        return Rows(get, notes)

    def batch(self, rows: Sequence[Any]) -> dict[str, Tensor]:
        """Prepare 2B pictures, the first of all rows and then the second."""
        images = [row[side].convert("RGB") for side in ("image_a", "image_b") for row in rows]
        prompts = [row["prompt"] for row in rows] * 2
        inputs = self.reward.prepare([np.asarray(image) for image in images], prompts)
        for i, error in inputs.errors.items():
            raise ValueError(f"a picture of {prompts[i]!r} cannot be scored: {error}")
        labels = torch.tensor([float(row["label"]) for row in rows])
        return {**inputs.inputs, "preference": labels}

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Bradley and Terry's loss."""
        first, second = self._scores(inputs)
        return bradley_terry_loss(first, second, inputs["preference"], scale=self.scale)

    def predict(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Log-odds that the first is better."""
        first, second = self._scores(inputs)
        return self.scale * (first - second)

    def _scores(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        first, second = self.reward.forward(inputs).float().chunk(2)
        return first, second

    def save(self, folder: Path, temperatures: Mapping[str, float], weights_license: str) -> None:
        """Write the weights as the base's loader reads them, and what else it reads."""
        place = folder / MODEL
        place.mkdir(parents=True, exist_ok=True)
        names = {"checkpoint": f"{MODEL}/model.safetensors"}
        state = {key: weight.contiguous() for key, weight in self.net.state_dict().items()}
        save_file(state, folder / names["checkpoint"])
        for key, path in self.files.items():
            if key in ("checkpoint", "manifest"):
                continue
            names[key] = f"{MODEL}/{path.name}"
            (shutil.copytree if path.is_dir() else shutil.copyfile)(path, folder / names[key])
        variant = self.reward.variant
        write_variant(
            folder,
            self.reward.spec.name,
            recipe=variant.recipe,
            files=names,
            weights_license=weights_license,
            config=variant.config,
        )


def _note(prompt: str, label: float, stage: str, step: int, steps: int, category: str, picture: str) -> Note:
    where = f"{step}/{steps}" if step < steps else category or "right"
    return Note(prompt, label, stage, where, picture)


def make_task(model: ModelSection) -> Task:
    """Load the base and say what it is to learn.

    Raises:
        ValueError: the base cannot be taught that.
    """
    reward = load(model.base, device="cpu", dtype=getattr(torch, model.dtype), weights=model.weights)
    if model.loss == "answers":
        if not isinstance(reward, Critic):
            raise ValueError(
                f"model.base {model.base!r} answers no questions: take orm or parm, or loss: preference"
            )
        return Answers(reward, model)
    if isinstance(reward, Critic) or not reward.spec.differentiable:
        raise ValueError(
            f"model.base {model.base!r} cannot be taught preferences: take e.g. hpsv2 or pickscore"
        )
    return Preference(reward, model)

"""The loop closed: a critic that is rewarded by learns anew from what the policy paints as it improves.

Every so many steps the training pauses. The policy as it is paints, the critic's judge labels, and the critic
goes on learning from the weights it has, all by `rewardzoo train critic` in a process of its own: it has its
own precision, gives its memory back at the end, and goes on where it was if it is killed. The new version
then counts, and the one before it is kept as a held-out judge of the same pictures.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml
from accelerate.utils import gather_object
from numpy.typing import NDArray

from rewardzoo.rewards import RewardModel, load
from rewardzoo.trainers.config import RefreshSection, load_config
from rewardzoo.trainers.critic.config import CriticConfig
from rewardzoo.trainers.rewards import RewardsLostError
from rewardzoo.trainers.sharding import weights_digest

if TYPE_CHECKING:
    from rewardzoo.trainers.run import Run

_GLANCE = 0.2
# What would make the critic's process one of the policy's.
_DISTRIBUTED = re.compile(
    r"(ACCELERATE_(?!USE_CPU)|FSDP_|TORCHELASTIC_|GROUP_|ROLE_|LOCAL_|MASTER_|OMPI_|PMI_|MV2_).*|RANK|WORLD_SIZE"
)


class Refresh:
    """The versions of a critic: `critic-000`, as it was named among the rewards, and what it became.

    Version v lies in `run.out/critics/critic-00v-DIGEST`, a variant like any other; the digest is that of the
    policy it learned from. Its state, for checkpoints, is the names of these folders.

    Raises:
        ValueError: the critic is none of the rewards, or there is nothing said of how its data are made.
    """

    def __init__(self, run: Run[Any], section: RefreshSection) -> None:
        self._run, self._section = run, section
        self._critic = load_config(CriticConfig, section.config)
        self.name = self._critic.model.base
        self._folders: list[str] = []
        self._loaded: dict[int, RewardModel] = {}
        if self.name not in (weights := run.config.rewards.weights):
            raise ValueError(
                f"critic.config: {section.config} trains {self.name}, which is none of rewards.weights "
                f"({', '.join(weights)}): what is refreshed must count"
            )
        if self._critic.data.policy is None:
            raise ValueError(
                f"critic.config: {section.config} has no data.policy, data.judge and data.train, by which "
                "pictures are made and labelled"
            )

    @property
    def version(self) -> int:
        """Which version counts; 0 before the first refresh."""
        return len(self._folders)

    def state_dict(self) -> dict[str, Any]:
        """Return which versions there are."""
        return {"folders": list(self._folders)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with these; `host` loads them."""
        self._folders = list(state["folders"])

    def host(self) -> None:
        """Have pictures scored by the version that counts, and by the ones before it that judge."""
        last = self.version
        kept = range(max(0, last - self._section.keep), last + 1)
        self._loaded = {v: self._loaded.get(v) or self._load(v) for v in kept}
        judges = {_label(v): self._loaded[v] for v in kept[:-1]}
        self._run.rewards.host({self.name: self._loaded[last], **judges})

    def refresh_if_due(self) -> dict[str, float]:
        """Train the next version where this step asks for it; all processes must call it. Return metrics.

        Raises:
            RewardsLostError: the critic's training failed; its log says why.
            StopAskedError: a signal came meanwhile.
        """
        run, began = self._run, time.monotonic()
        if run.step == 0 or run.step % self._section.every:
            return {}
        run.checkpoint()  # what follows takes long: whoever stops it comes back to here
        folder = self._place(f"{_label(self.version + 1)}-{weights_digest(run.trained)}")
        # What the main process sees is what counts.
        if not gather_object([_is_done(folder)])[0]:
            run.export(folder / "policy")
            self._train(folder)
        self._folders.append(folder.name)
        self.host()
        run.accelerator.wait_for_everyone()
        if run.accelerator.is_main_process:
            self._tidy(folder)
        found = json.loads((folder / "metrics.json").read_text())["quality"]["validation"]["all"]
        return {
            "critic/version": float(self.version),
            "critic/accuracy": float(found["accuracy"]),
            "seconds/critic": time.monotonic() - began,
        }

    def drift(self, parts: Mapping[str, NDArray[np.float32]]) -> dict[str, float]:
        """Compare scores (n,) of the version that counts and of the one before it, of the same pictures.

        `critic/drift` is the mean of abs(new - old), `critic/spearman` their rank correlation, NaN where one
        of them says the same of all.
        """
        if not self.version:
            return {}
        from scipy.stats import spearmanr  # half a second, of which runs without a critic have no use

        new, old = parts[self.name], parts[_label(self.version - 1)]
        both = np.isfinite(new) & np.isfinite(old)
        new, old = new[both], old[both]
        if not len(new):
            return {"critic/drift": math.nan, "critic/spearman": math.nan}
        varies = np.ptp(new) > 0 and np.ptp(old) > 0
        return {
            "critic/drift": float(np.abs(new - old).mean()),
            "critic/spearman": float(spearmanr(new, old).statistic) if varies else math.nan,
        }

    def _place(self, name: str) -> Path:
        out: Path = self._run.config.run.out
        return out / "critics" / name

    def _name_of(self, version: int) -> str:
        if version == 0:
            return self.name
        return f"{self.name.partition(':')[0]}:{self._place(self._folders[version - 1]).resolve()}"

    def _load(self, version: int) -> RewardModel:
        weights = self._critic.model.weights if version == 0 else None
        return load(self._name_of(version), device=self._run.config.rewards.device, weights=weights)

    def _train(self, folder: Path) -> None:
        """Have the main process start the critic's training, and wait for it in all."""
        run = self._run
        process: subprocess.Popen[bytes] | None = None
        log = folder.with_suffix(".log")
        if run.accelerator.is_main_process:
            settings, asked = folder.with_suffix(".yaml"), self._settings(folder).model_dump(mode="json")
            settings.write_text(yaml.safe_dump(asked, sort_keys=False))
            torch.cuda.empty_cache()  # the critic shares the device
            with log.open("ab") as out:
                process = subprocess.Popen(_command(settings), env=_environment(), stdout=out, stderr=out)
        try:
            while (code := gather_object([process.poll() if process else None])[0]) is None:
                run.stop_if_asked()
                time.sleep(_GLANCE)
        finally:
            if process and process.poll() is None:
                process.terminate()
                process.wait()
        if code:
            raise RewardsLostError(
                f"the critic could not be refreshed, its training ended with {code}: see {log}", 1
            )

    def _settings(self, folder: Path) -> CriticConfig:
        """The critic's own settings, for this version: data of the policy as it is, weights as they are."""
        critic = self._critic
        where = {"name_or_path": str(folder / "policy"), "lora": None}
        policy = critic.data.policy.model_copy(update=where) if critic.data.policy else None
        data = {"folder": folder / "data", "policy": policy}
        weights = None if self.version else critic.model.weights
        model = {"base": self._name_of(self.version), "weights": weights}
        return critic.model_copy(
            update={
                "data": critic.data.model_copy(update=data),
                "model": critic.model.model_copy(update=model),
                "run": critic.run.model_copy(update={"out": folder, "resume": "auto"}),
            }
        )

    def _tidy(self, folder: Path) -> None:
        """Delete what a version was made by, and versions that neither the run nor its checkpoint needs."""
        for name in ("policy", "checkpoints"):
            shutil.rmtree(folder / name, ignore_errors=True)
        needed = {*self._folders[-self._section.keep - 2 :], folder.name}
        for other in folder.parent.iterdir():
            if other.is_dir() and other.name not in needed:
                shutil.rmtree(other, ignore_errors=True)


def _label(version: int) -> str:
    return f"critic-{version:03d}"


def _is_done(folder: Path) -> bool:
    """Whether a version is whole: the card is written last, and checkpoints are deleted after it."""
    return (folder / "README.md").exists() and not (folder / "checkpoints").exists()


def _command(settings: Path) -> list[str]:
    return [sys.executable, "-m", "rewardzoo", "train", "critic", "--config", str(settings)]


def _environment() -> dict[str, str]:
    """This process's environment, without what says that it is one of several."""
    return {name: value for name, value in os.environ.items() if not _DISTRIBUTED.fullmatch(name)}

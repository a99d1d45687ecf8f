"""ORM and PARM of Image-Generation-CoT by its own `selector.py` and its copy of LLaVA-NeXT.

    git clone https://github.com/ZiyuGuo99/Image-Generation-CoT && cd Image-Generation-CoT
    git checkout 1ff33eb343361a5b1b3d57ee228187277650888b     (no licence file; its LLaVA-NeXT: Apache-2.0)
    ENV/bin/python tests/parity/oracles/imagegen_cot.py --upstream CHECKOUT --out tests/parity/fixtures

ENV has requirements/llava-next.txt. Writes the checkpoint `_shared/llava-next` and four cases.
`_llava_next.py` says what around upstream's code is ours.

Upstream samples its answers. For the sampled recipes its methods run under one seed after the other until
an answer is sampled that it accepts; the number that it then returns is the same whatever the seed. Where
no accepted answer can be sampled at all, the case has what upstream returns in its stead. For the other
recipes its methods run once, and the logits are upstream's model's for what its method asked: only the
sigmoid of their difference is ours.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from _llava_next import (
    CONFIG,
    FOLDER,
    Watched,
    add_upstream,
    as_upstream_reads_it,
    rows,
    run_in_full_precision,
    sampled,
    spelled,
    write_checkpoint,
)
from _oracle import environment, write_case

COMMIT = "1ff33eb343361a5b1b3d57ee228187277650888b"
NO_ANSWER = 50.0  # what upstream returns for P(no) then
STAGES: tuple[Mapping[str, Any], ...] = ({}, {"clear": True}, {"stage": "selection"})


class Asker:
    """Asks upstream's selector about one picture and prompt."""

    def __init__(self, selector: Any, path: Path, prompt: str) -> None:
        from llava.mm_utils import process_images
        from PIL import Image

        self.selector, self.path, self.prompt = selector, path, [prompt]
        self.watched: Watched = selector.model.generate
        self.image = Image.open(path)
        self.tensor = process_images([self.image], selector.image_processor, selector.model.config)[0]
        tokenizer = selector.tokenizer
        self.yes, self.no = tokenizer.convert_tokens_to_ids(["yes", "no"])
        self.answers = spelled(tokenizer, "yes", "no")
        self.refusals = spelled(tokenizer, "no")

    def plain(self, method: Callable[..., Any]) -> tuple[float, float, float]:
        """P(yes) of the two, and P(yes) and P(no) over the vocabulary, from upstream's logits."""
        method(self.prompt, self.tensor, self.image)
        logits = self.watched.logits().double()
        shares = logits.softmax(-1)
        two = (logits[self.yes] - logits[self.no]).sigmoid()
        return two.item(), shares[self.yes].item(), shares[self.no].item()

    def orm(self) -> tuple[float, dict[str, float]]:
        """Score and details of the recipe `orm/yes-no`."""
        score, yes, no = self.plain(lambda prompt, *_: self.selector.orm(prompt, str(self.path)))
        return score, {"p_yes": yes, "p_no": no}

    def sampled_orm(self) -> tuple[float, dict[str, float]]:
        """Score and details of the recipe `orm/imagegen-cot-sampled`."""

        def run() -> tuple[float, bool]:
            _, number = self.selector.orm(self.prompt, str(self.path))
            token = self.watched.returned.sequences[0][0].item()
            return number, token in self.answers

        run()
        answered = self.watched.probabilities()[self.answers].sum().item()
        return (sampled(run) if answered else 0.0), {"answered": answered}

    def parm(self, metadata: Mapping[str, Any]) -> tuple[float, dict[str, Any]]:
        """Score and details of the recipe `parm/yes-no`."""
        if metadata.get("stage") == "selection":
            score, *_ = self.plain(lambda prompt, *_: self.selector.orm(prompt, str(self.path)))
            return score, {"selection": score}
        clarity, *_ = self.plain(self.selector.clarity_judgement)
        potential, *_ = self.plain(self.selector.potential_assessment)
        clear = bool(metadata.get("clear")) or clarity >= 0.5
        details = {"clarity": clarity, "potential": potential, "clear": clear}
        return (potential if clear else 0.0), details

    def sampled_parm(self, metadata: Mapping[str, Any]) -> tuple[float, dict[str, Any]]:
        """Score and details of the recipe `parm/imagegen-cot-sampled`."""
        if metadata.get("stage") == "selection":
            score, details = self.sampled_orm()
            return score, {**details, "selection": score}
        given = bool(metadata.get("clear"))
        self.selector.clarity_judgement(self.prompt, self.tensor, self.image)
        unclear = self.watched.probabilities()[self.refusals].sum().item()
        clear = given or unclear <= 0.5
        details: dict[str, Any] = {"unclear": unclear, "clear": clear}

        def run() -> tuple[float, bool]:
            _, no, found_clear = self.selector.parm(self.prompt, str(self.path), given)
            return no, found_clear == clear and no != NO_ANSWER

        if clear:
            self.selector.potential_assessment(self.prompt, self.tensor, self.image)
            details["answered"] = self.watched.probabilities()[self.answers].sum().item()
            if not details["answered"]:
                return 0.0, details
        return 1 - sampled(run), details


def main() -> None:
    """Write the checkpoint and the cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upstream", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    add_upstream(options.upstream)
    import selector as upstream
    from llava.model import builder

    run_in_full_precision(builder)
    run_in_full_precision(upstream)
    folder = options.out / FOLDER
    write_checkpoint(folder)
    selector = upstream.ImageSelector(pretrained=str(folder), device="cpu", device_map="auto")
    Watched(selector.model)
    oracle = {
        "name": "ZiyuGuo99/Image-Generation-CoT, selector.py",
        "commit": COMMIT,
        "environment": environment("torch", "transformers"),
        "dtype": "float32",
    }
    cases = {
        "orm-yes-no": ("orm:imagegen-cot", "orm/yes-no", lambda a, m: a.orm(), ({},)),
        "orm-imagegen-cot-sampled": (
            "orm:imagegen-cot-sampled",
            "orm/imagegen-cot-sampled",
            lambda a, m: a.sampled_orm(),
            ({},),
        ),
        "parm-yes-no": ("parm:imagegen-cot", "parm/yes-no", Asker.parm, STAGES),
        "parm-imagegen-cot-sampled": (
            "parm:imagegen-cot-sampled",
            "parm/imagegen-cot-sampled",
            Asker.sampled_parm,
            STAGES,
        ),
    }
    for name, (reward, recipe, ask, stages) in cases.items():
        pairs = []
        with tempfile.TemporaryDirectory() as scratch:
            for i, row in enumerate(rows()):
                metadata = stages[i % len(stages)]
                pair = {"image": row["image"], "prompt": row["prompt"], "metadata": metadata}
                if "refused" in row:
                    pairs.append({**pair, "score": None, "details": {}, "error": row["refused"]})
                    continue
                path, converted = as_upstream_reads_it(row["image"], Path(scratch))
                score, details = ask(Asker(selector, path, row["prompt"]), metadata)
                pair |= {"score": score, "details": details, "error": None}
                pairs.append({**pair, "converted": True} if converted else pair)
        case = {
            "reward": reward,
            "recipe": recipe,
            "config": CONFIG,
            "files": {"checkpoint": f"../{FOLDER}"},
            "oracle": oracle,
            "tolerance": 1e-5,
        }
        write_case(options.out / name, case, pairs)
        print(json.dumps([round(p["score"], 4) for p in pairs if p["score"] is not None]))


if __name__ == "__main__":
    main()

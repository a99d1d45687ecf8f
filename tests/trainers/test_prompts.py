from __future__ import annotations

import json
from pathlib import Path

import pytest

from rewardzoo.trainers.config import PromptsSection
from rewardzoo.trainers.lab import sample_prompts
from rewardzoo.trainers.prompts import Prompt, PromptOrder, load_prompts


def texts(source: object, **settings: object) -> list[str]:
    return [prompt.text for prompt in load_prompts(PromptsSection(source=str(source), **settings))]


def test_the_lab_gives_the_prompts_of_a_split_by_seed() -> None:
    assert texts("lab:out_of_domain", count=5, seed=3) == sample_prompts(5, "out_of_domain", 3)
    with pytest.raises(ValueError, match="no split 'ood': there are in_domain, out_of_domain"):
        texts("lab:ood")


def test_text_files_are_joined_in_the_order_of_their_names_without_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "b_train.txt").write_text("third\n")
    (tmp_path / "a_train.txt").write_text("first \n\n  second\n")
    assert texts(tmp_path / "*_train.txt") == ["first", "second", "third"]
    assert texts(tmp_path / "*_train.txt", count=2) == ["first", "second"]


def test_json_lines_bring_metadata_for_rewards_that_ask_for_it(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"caption": "a dog", "metadata": {"nouns": ["dog"]}}) + "\n")
    config = PromptsSection(source=str(path), prompt_column="caption")
    assert load_prompts(config) == [Prompt("a dog", {"nouns": ["dog"]})]


def test_parquet_is_read_by_its_prompt_column(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"prompt": ["a", "b"], "metadata": ['{"n": 1}', None], "other": [1, 2]})
    parquet.write_table(table, tmp_path / "p.parquet")
    assert load_prompts(PromptsSection(source=str(tmp_path / "p.parquet"))) == [
        Prompt("a", {"n": 1}),
        Prompt("b"),
    ]


def test_a_line_without_a_prompt_is_named(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n{"text": "b"}\n')
    with pytest.raises(ValueError, match=r"prompts\.jsonl, line 2: no text in column prompt; it has text"):
        texts(path)
    with pytest.raises(ValueError, match="there is no file"):
        texts(tmp_path / "none.txt")


def test_each_epoch_takes_every_prompt_once_in_an_order_of_its_own() -> None:
    prompts = [Prompt(str(i)) for i in range(10)]
    order = PromptOrder(prompts, seed=0)
    first, second = order.take(10), order.take(10)
    assert sorted(p.text for p in first) == sorted(p.text for p in second) == sorted(p.text for p in prompts)
    assert first != second
    assert PromptOrder(prompts, seed=1).take(10) != first


def test_an_order_goes_on_from_its_state() -> None:
    prompts = [Prompt(str(i)) for i in range(7)]
    order = PromptOrder(prompts, seed=0)
    order.take(5)
    state = order.state_dict()
    other = PromptOrder(prompts, seed=0)
    other.load_state_dict(state)
    assert other.take(6) == order.take(6)
    with pytest.raises(ValueError, match="trained on 7 prompts, there are 3 now"):
        PromptOrder(prompts[:3], seed=0).load_state_dict(state)

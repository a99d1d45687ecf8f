import json
from pathlib import Path

import numpy as np
from PIL import Image

from rewardzoo.clients.compare.data import find_data
from rewardzoo.trainers.lab import judge, triples
from rewardzoo.trainers.lab.preferences import write_pool, write_preferences


def test_preferences_are_written_in_the_plain_format_and_read_by_the_comparison(tmp_path: Path) -> None:
    table = write_preferences(tmp_path, 5, seed=3)
    data = find_data(str(table))
    groups = list(data.groups())
    assert data.benchmark == "plain"
    assert [group.split for group in groups] == ["in_domain"] * 5 + ["out_of_domain"] * 5
    for group, triple in zip(groups, triples(5, seed=3), strict=False):
        assert (group.prompt, group.categories) == (triple.prompt, (triple.category, "in_domain"))
        right, wrong = (np.asarray(Image.open(data.root / image)) for image in group.images)
        assert (right == triple.right).all()
        assert (wrong == triple.wrong).all()
    assert all(group.pairs == ((0, 1, 1),) for group in groups)


def test_a_pool_has_the_exact_judges_scores_as_ratings(tmp_path: Path) -> None:
    (triple,) = triples(1, seed=0)
    table = write_pool(tmp_path, [(triple.prompt, [triple.right, triple.wrong])])
    ratings = [json.loads(line)["rating"] for line in table.read_text().splitlines()]
    assert ratings == [1.0, judge(triple.wrong, triple.prompt).score]
    assert ratings[1] < 1
    assert find_data(str(table)).benchmark == "pool"

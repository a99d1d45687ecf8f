from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rewardzoo.clients.compare.groups import Group
from rewardzoo.clients.compare.scoring import score_all
from rewardzoo.clients.compare.store import CHUNK, ScoreStore
from rewardzoo.errors import ItemError

from .conftest import MakeStore, Red, scorer_of, write_red


@pytest.fixture
def reds(tmp_path: Path) -> list[Group]:
    """600 items: three chunks; item i has the red value i % 250, so that 13 and 263 cannot be scored."""
    for red in range(250):
        write_red(tmp_path / f"{red}.png", red)
    return [
        Group(f"{i}", f"prompt {i}", (f"{2 * i % 250}.png", f"{(2 * i + 1) % 250}.png")) for i in range(300)
    ]


def test_every_item_is_scored_once_in_its_place(reds: list[Group], make_store: MakeStore) -> None:
    store, red = make_store(reds), Red("red", 2.0)
    heard: list[tuple[int, int]] = []
    score_all(store, scorer_of(red), ["red"], lambda done, total: heard.append((done, total)))
    expected = np.arange(600) % 250 * 2.0
    expected[[13, 263, 513]] = np.nan
    np.testing.assert_array_equal(store.scores("red"), expected)
    assert len(red.seen) == 600
    assert heard == [(0, 600), (256, 600), (512, 600), (600, 600)]
    assert store.reward("red").failed == 3
    assert store.reward("red").provenance["weights_sha256"] == "1"


def test_what_is_scored_is_not_scored_again_and_a_new_reward_scores_alone(
    reds: list[Group], make_store: MakeStore
) -> None:
    first, second = Red("red"), Red("blue")
    score_all(make_store(reds), scorer_of(first), ["red"])
    score_all(make_store(reds), scorer_of(first, second), ["red", "blue"])
    assert (len(first.seen), len(second.seen)) == (600, 600)
    assert make_store(reds).rewards == ["blue", "red"]


def test_images_go_to_the_scorer_once_for_all_rewards(reds: list[Group], make_store: MakeStore) -> None:
    store, red, blue = make_store(reds), Red("red"), Red("blue", -1.0)
    score_all(store, scorer_of(red, blue), ["red", "blue"])
    assert len(list(store.folder.glob("scores-*.parquet"))) == 3
    np.testing.assert_array_equal(store.scores("red"), -store.scores("blue"))


def test_an_error_is_kept_with_its_item_and_tried_no_more(reds: list[Group], make_store: MakeStore) -> None:
    from pyarrow import parquet

    store, red = make_store(reds), Red("red")
    score_all(store, scorer_of(red), ["red"])
    table = parquet.read_table(sorted(store.folder.glob("scores-000000-*"))[0])
    assert table["red.error"].to_pylist()[13] == "unlucky"
    assert table["red.error"].null_count == CHUNK - 1
    score_all(store, scorer_of(red), ["red"])
    assert len(red.seen) == 600


def test_metadata_reaches_the_reward(tmp_path: Path, make_store: MakeStore) -> None:
    write_red(tmp_path / "a.png", 1)
    groups = [Group("0", "p", ("a.png",), metadata={"step": 3}), Group("1", "q", ("a.png",))]
    red = Red("red")
    score_all(make_store(groups), scorer_of(red), ["red"])
    assert red.told == [{"step": 3}, {}]


def test_missing_images_cost_their_items_alone(tmp_path: Path, make_store: MakeStore) -> None:
    write_red(tmp_path / "a.png", 1)
    missing = ("gone.png", "gone.zip!a.png", "a.png")
    store = make_store([Group("0", "p", missing)])
    score_all(store, scorer_of(Red("red")), ["red"])
    np.testing.assert_array_equal(store.scores("red"), [np.nan, np.nan, 1])


def test_a_chunk_without_any_score_stops_the_run_and_says_why(make_store: MakeStore) -> None:
    store = make_store([Group("0", "p", ("gone.png", "away.png"))])
    with pytest.raises(ItemError, match=r"none of the 2 items .*cannot read the image file"):
        score_all(store, scorer_of(Red("red")), ["red"])
    assert store.missing(["red"]) == {0: ["red"]}


def test_going_on_with_other_weights_is_refused(reds: list[Group], make_store: MakeStore) -> None:
    store = make_store(reds)
    scorer = scorer_of(Red("red"))
    score_all(store, scorer, ["red"])
    sorted(store.folder.glob("scores-*"))[0].unlink()
    with pytest.raises(ValueError, match="weights_sha256 1, now it is 2"):
        score_all(make_store(reds), scorer_of(Red("red", weights="2")), ["red"])


def test_other_data_of_the_same_name_is_refused(reds: list[Group], make_store: MakeStore) -> None:
    make_store(reds)
    with pytest.raises(ValueError, match="holds other data of that name"):
        make_store(reds[1:])
    with pytest.raises(ValueError, match="there are no images in here"):
        make_store([], name="empty")


def test_two_runs_do_not_score_into_one_folder(reds: list[Group], make_store: MakeStore) -> None:
    store = make_store(reds)
    with store.locked(), pytest.raises(ValueError, match="another run is scoring"):
        score_all(make_store(reds), scorer_of(Red("red")), ["red"])


def test_a_folder_without_data_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no items to score"):
        ScoreStore(tmp_path)


LARGE_RUN = """
    import json, resource, sys, time
    from pathlib import Path
    from rewardzoo.clients.compare.data import find_data
    from rewardzoo.clients.compare.preference import preference
    from rewardzoo.clients.compare.scoring import score_all
    from rewardzoo.clients.compare.statistics import Bootstrap
    from tests.clients.compare.conftest import Red, scorer_of

    folder = Path(sys.argv[1])
    store = find_data(str(folder / "pairs.jsonl")).store(folder / "out")
    score_all(store, scorer_of(Red("red"), Red("anti", -1.0)), ["red", "anti"])
    summary = preference(store, ["red", "anti"], Bootstrap(1000), {})
    accuracies = {a.reward: a.estimate.value for a in summary.accuracies if a.category == "all"}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"pairs": store.info.pairs, "peak_mb": peak, **accuracies}))
"""


@pytest.mark.slow
def test_100_000_pairs_are_compared_within_two_gigabytes(tmp_path: Path) -> None:
    for red in range(5):
        write_red(tmp_path / f"{red}.png", red * 20)
    with (tmp_path / "pairs.jsonl").open("w") as file:
        for prompt in range(10_000):
            for i, j in combinations(range(5), 2):  # in one of ten, the less red one is chosen
                chosen, rejected = (i, j) if prompt % 10 == 0 else (j, i)
                row = {"prompt": f"p{prompt}", "chosen": f"{chosen}.png", "rejected": f"{rejected}.png"}
                file.write(json.dumps(row | {"category": f"kind {prompt % 7}"}) + "\n")
    command = [sys.executable, "-c", textwrap.dedent(LARGE_RUN), str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    told = json.loads(done.stdout)
    assert told["pairs"] == 100_000
    assert (told["red"], told["anti"]) == (pytest.approx(0.9), pytest.approx(0.1))
    assert told["peak_mb"] < 2048


SLOW_RUN = """
    import sys, time
    from pathlib import Path
    from rewardzoo.clients.compare.scoring import score_all
    from rewardzoo.clients.compare.store import ScoreStore
    from tests.clients.compare.conftest import Red, scorer_of

    class Slow(Red):
        def score_items(self, images, prompts, metadata):
            time.sleep(0.05)
            with open(sys.argv[2], "a") as log:
                log.writelines(f"{prompt}\\n" for prompt in prompts)
            return super().score_items(images, prompts, metadata)

    score_all(ScoreStore(Path(sys.argv[1])), scorer_of(Slow("red")), ["red"])
"""


@pytest.mark.slow
def test_a_run_that_was_killed_scores_nothing_again_that_was_kept(
    tmp_path: Path, make_store: MakeStore
) -> None:
    Image.new("RGB", (4, 4), (7, 0, 0)).save(tmp_path / "a.png")
    store = make_store([Group(f"{i}", f"{i}", ("a.png",)) for i in range(5 * CHUNK)])
    log = tmp_path / "log"
    command = [sys.executable, "-c", textwrap.dedent(SLOW_RUN), str(store.folder), str(log)]
    run = subprocess.Popen(command)
    while len(kept := list(store.folder.glob("scores-*.parquet"))) < 2:
        assert run.poll() is None
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.wait()
    kept = list(store.folder.glob("scores-*.parquet"))
    assert len(kept) < 5
    subprocess.run(command, check=True)
    times = Counter(log.read_text().split())
    # What was in flight at the kill is scored anew, what was kept is not.
    kept_items = {str(c * CHUNK + i) for c in (int(p.name[7:13]) for p in kept) for i in range(CHUNK)}
    assert all(times[item] == 1 for item in kept_items)
    assert sum(times.values()) <= (5 + 2) * CHUNK
    assert (ScoreStore(store.folder).scores("red") == 7).all()

"""Laws of the order: what every (shard sizes, seed, window) must keep."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetstep import rng
from fleetstep.data.order import Order

shard_sizes = st.lists(st.integers(1, 40), min_size=1, max_size=8)
seeds = st.integers(0, 2**63 - 1)
windows = st.integers(1, 400)


@given(sizes=shard_sizes, seed=seeds, window=windows, epoch=st.integers(0, 1000))
@settings(deadline=None)
def test_every_epoch_is_a_permutation_of_all_ids(
    sizes: list[int], seed: int, window: int, epoch: int
):
    n = sum(sizes)
    ids = Order(sizes, seed, window).ids(epoch * n, n)
    assert np.array_equal(np.sort(ids), np.arange(n))


@given(sizes=shard_sizes, seed=seeds, window=windows, data=st.data())
@settings(deadline=None)
def test_any_split_of_a_range_gives_the_same_ids(
    sizes: list[int], seed: int, window: int, data: st.DataObject
):
    n = sum(sizes)
    first = data.draw(st.integers(0, 4 * n))
    counts = data.draw(st.lists(st.integers(0, n), max_size=6))
    whole = Order(sizes, seed, window).ids(first, sum(counts))
    order, position, pieces = Order(sizes, seed, window), first, [np.empty(0, np.int64)]
    for count in counts:
        pieces.append(order.ids(position, count))
        position += count
    assert np.array_equal(np.concatenate(pieces), whole)


@given(sizes=shard_sizes, seed=seeds, window=windows, part=st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_any_number_of_workers_sees_the_same_global_batches(
    sizes: list[int], seed: int, window: int, part: int
):
    global_batch = 24 * part
    batches = -(-3 * sum(sizes) // global_batch)
    alone = (
        Order(sizes, seed, window).ids(0, batches * global_batch).reshape(batches, global_batch)
    )
    for workers in (2, 3, 4, 8):
        share = global_batch // workers
        orders = [Order(sizes, seed, window) for _ in range(workers)]
        for b in range(batches):
            slices = [
                order.ids(b * global_batch + w * share, share) for w, order in enumerate(orders)
            ]
            assert np.array_equal(np.concatenate(slices), alone[b])


@given(sizes=shard_sizes, seed=seeds, window=windows)
@settings(deadline=None)
def test_a_sample_travels_less_than_a_window(sizes: list[int], seed: int, window: int):
    """From where its permuted shard put it: window 1 shows that place."""
    n = sum(sizes)
    for epoch in range(2):
        shuffled = Order(sizes, seed, window).ids(epoch * n, n)
        unshuffled = Order(sizes, seed, 1).ids(epoch * n, n)
        place = np.empty(n, np.int64)
        place[unshuffled] = np.arange(n)
        assert np.abs(place[shuffled] - np.arange(n)).max() < min(window, n)


@given(sizes=shard_sizes, seed=seeds)
@settings(deadline=None)
def test_window_one_keeps_shards_whole(sizes: list[int], seed: int):
    ids = Order(sizes, seed, 1).ids(0, sum(sizes))
    bounds = np.cumsum([0, *sizes])
    runs = {tuple(range(a, b)) for a, b in pairwise(bounds)}
    position = 0
    while position < len(ids):
        run = next(run for run in runs if run[0] == ids[position])
        assert tuple(ids[position : position + len(run)]) == run
        position += len(run)


def test_epochs_differ_and_mix_other_neighbours():
    order = Order([100] * 10, seed=3, window=64)
    first, second = order.ids(0, 1000), order.ids(1000, 1000)
    assert (first != second).mean() > 0.9
    # Same shards in another order: the batches of two epochs have few samples in common.
    common = [len(set(first[k : k + 50]) & set(second[k : k + 50])) for k in range(0, 1000, 50)]
    assert np.mean(common) < 20


def test_window_boundaries_move_between_epochs():
    """With one shard and fixed cuts, the same 64 samples would be mixed for ever."""
    order = Order([1024], seed=0, window=64)
    groups = [frozenset(order.ids(epoch * 1024, 64).tolist()) for epoch in range(12)]
    assert len(set(groups)) > 8


def test_the_whole_dataset_as_window_is_a_uniform_shuffle():
    """The first sample of an epoch, over many epochs, is any id equally often (chi-square)."""
    order = Order([3, 7], seed=1, window=10)
    firsts = np.array([order.ids(epoch * 10, 1)[0] for epoch in range(2000)])
    counts = np.bincount(firsts, minlength=10)
    # Nine degrees of freedom: 33.7 is passed by chance once in 10,000.
    assert ((counts - 200) ** 2 / 200).sum() < 33.7


@pytest.mark.parametrize("position", [0, 10**6, 10**12])
def test_random_access_costs_one_window_wherever_it_lands(position: int):
    order = Order([1000] * 50, seed=0, window=500)
    order.ids(position, 64)
    assert order.windows_made <= 2


def test_reading_on_makes_each_window_once():
    order = Order([100] * 10, seed=0, window=100)
    for first in range(0, 1000, 8):
        order.ids(first, 8)
    assert order.windows_made in (10, 11)


def test_the_same_image_meets_different_noise_in_different_epochs():
    order = Order([10, 10], seed=5, window=8)
    image = 7
    positions = [int(np.flatnonzero(order.ids(e * 20, 20) == image)[0]) + e * 20 for e in range(4)]
    noise = [rng.draw(5, "noise", p, 1, (2, 2)).tobytes() for p in positions]
    levels = [rng.uniform(5, "noise-level", p, 1).tobytes() for p in positions]
    assert len(set(noise)) == len(set(levels)) == 4


def by_the_book(sizes: list[int], seed: int, window: int, epoch: int) -> list[int]:
    """Order format 1 word by word: the whole epoch at once, with lists."""
    bases = [sum(sizes[:s]) for s in range(len(sizes))]
    turn = rng.permutation(seed, "shard-order", epoch, len(sizes)).tolist()
    sequence = [bases[s] + k for s in turn for k in range(sizes[s])]
    n, w = len(sequence), min(window, len(sequence))
    shift = 0 if w == n else int(rng.bits(seed, "window-shift", epoch, 1)[0]) % w
    cuts = [0, *range(shift, n, w), n]
    ids: list[int] = []
    for number, (start, stop) in enumerate(pairwise(cuts)):
        permuted = rng.permutation(seed, f"window-order|{epoch}", number, stop - start)
        ids += [sequence[start + k] for k in permuted.tolist()]
    return ids


@given(sizes=shard_sizes, seed=seeds, window=windows, epoch=st.integers(0, 99))
@settings(deadline=None)
def test_the_order_is_the_documented_rule(sizes: list[int], seed: int, window: int, epoch: int):
    n = sum(sizes)
    assert Order(sizes, seed, window).ids(epoch * n, n).tolist() == by_the_book(
        sizes, seed, window, epoch
    )


def test_order_format_one_is_pinned():
    """A change here breaks every resume: it needs a new order format."""
    golden = json.loads((Path(__file__).parents[1] / "golden" / "order.json").read_text())
    for case in golden["cases"]:
        order = Order(case["shard_sizes"], case["seed"], case["window"])
        assert order.ids(case["first"], len(case["ids"])).tolist() == case["ids"]


@pytest.mark.parametrize(("sizes", "window"), [([], 4), ([3, 0], 4), ([3, -1], 4), ([3], 0)])
def test_impossible_orders_are_refused(sizes: list[int], window: int):
    with pytest.raises(ValueError, match="got"):
        Order(sizes, 0, window)


def test_negative_positions_are_refused():
    with pytest.raises(ValueError, match="first=-1"):
        Order([3], 0, 2).ids(-1, 2)

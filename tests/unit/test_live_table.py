"""The table of a sweep that runs: every cell has a row, from its first moment to its last."""

from __future__ import annotations

import io
import itertools
import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from fleetstep.orchestration.cells import Cell
from fleetstep.orchestration.finished_units import FinishedUnits, Pace
from fleetstep.orchestration.live_scores import LiveScores, Looks, Standing, leading_blocks
from fleetstep.orchestration.live_table import live_table, minima_lines
from fleetstep.orchestration.sweep_file import minima_of
from fleetstep.orchestration.sweep_plan import SweepPlan
from pixel_sweep import MEASURE, NEAR, Sweep, run


def text(table: Table) -> str:
    file = io.StringIO()
    Console(width=200, file=file).print(table)
    return file.getvalue()


def standings(sweep: Sweep, done: int) -> list[Standing]:
    """After the references and `done` units of cells."""
    units = sweep.plan.units[: 3 + done]
    finished = FinishedUnits(units)
    live = LiveScores(sweep.storage, sweep.measures, sweep.references())
    return list(live.look(sweep.plan, leading_blocks(sweep.plan, finished)))


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    made = Sweep(tmp_path_factory.mktemp("live"), seed_blocks=3, networks=(NEAR,))
    run(made.plan.units, made.worker())
    return made


class TestStandings:
    def test_every_cell_has_a_row_and_a_value_from_two_blocks_on(self, sweep: Sweep):
        for done, waiting in ((0, 2), (3, 1), (4, 0), (20, 0)):
            table = text(live_table(standings(sweep, done)))
            rows = [line for line in table.splitlines() if "near at 1,000" in line]
            assert len(rows) == 2
            assert sum("…" in row for row in rows) == waiting, done

    def test_the_images_of_each_value_are_told(self, sweep: Sweep):
        found = standings(sweep, 13)
        assert [one.score.records[0].n for one in found[::3] if one.score] == [700, 600]
        table = text(live_table(found))
        assert "700" in table
        assert "600" in table

    def test_seed_blocks_appear_once_they_are_begun(self, sweep: Sweep):
        assert len(text(live_table(standings(sweep, 20))).splitlines()) < len(
            text(live_table(standings(sweep, 24))).splitlines()
        )

    def test_whole_standings_are_the_final_scores(self, sweep: Sweep):
        final = sweep.scores()
        for one, score in zip(standings(sweep, 60), final, strict=True):
            assert one.score is not None
            assert one.score.records == score.records[:1]

    def test_a_gap_ends_what_can_be_scored(self, sweep: Sweep):
        units = [unit for unit in sweep.plan.units if unit.index != 4]
        blocks = leading_blocks(sweep.plan, FinishedUnits(units))
        assert set(blocks.values()) == {4, 10}
        assert FinishedUnits(units).rounds(sweep.plan) == 24

    def test_nothing_is_scored_before_its_reference(self, sweep: Sweep):
        blocks = leading_blocks(sweep.plan, FinishedUnits(sweep.plan.units[1:]))
        assert set(blocks.values()) == {0}

    def test_what_did_not_grow_is_not_computed_again(self, sweep: Sweep):
        live = LiveScores(sweep.storage, [MEASURE], sweep.references())
        blocks = leading_blocks(sweep.plan, FinishedUnits(sweep.plan.units))
        first = list(live.look(sweep.plan, blocks))
        again = list(live.look(sweep.plan, blocks))
        assert all(a is b for a, b in zip(first, again, strict=True))


class TestLooks:
    def test_a_look_follows_every_round_and_is_published_in_this_thread(self, sweep: Sweep):
        published: list[int] = []
        live = LiveScores(sweep.storage, sweep.measures, sweep.references())
        looks = Looks(
            live.look,
            lambda found: published.append(sum(one.score is not None for one in found)),
            now=lambda: 0.0,
        )
        finished = FinishedUnits(sweep.plan.units[:3])
        for unit in sweep.plan.units[3:23]:
            finished.add(unit)
            looks.ask(sweep.plan, finished)
            if looks._running is not None:
                looks._running.result()
        looks.ask(sweep.plan, finished)
        looks.close()
        assert published == [2] * 9  # rounds 2 ... 10

    def test_an_error_of_a_look_is_raised_where_it_is_asked_for(self, sweep: Sweep):
        def broken(*_: object) -> list[Standing]:
            raise ZeroDivisionError

        looks = Looks(broken, lambda found: None)
        finished = FinishedUnits(sweep.plan.units)
        looks.ask(sweep.plan, finished)
        assert looks._running is not None
        looks._running.exception()
        with pytest.raises(ZeroDivisionError):
            looks.ask(sweep.plan, finished)
        looks.close()

    def test_looks_take_a_twentieth_of_the_time_at_most(self, sweep: Sweep):
        clock, begun = 0.0, list[float]()

        def look(*_: object) -> Iterator[Standing]:
            nonlocal clock
            begun.append(clock)
            clock += 3.0
            yield from ()

        looks = Looks(look, lambda found: None, now=lambda: clock)
        finished = FinishedUnits(sweep.plan.units[:3])
        for unit in sweep.plan.units[3:63]:
            finished.add(unit)
            clock += 10.0  # a round takes 20 s, and a look is due after 30 s in any case
            looks.ask(sweep.plan, finished)
            if looks._running is not None:
                looks._running.result()
        looks.close()
        apart = [after - before for before, after in itertools.pairwise(begun)]
        assert len(apart) >= 5
        assert min(apart) >= 3.0 / 0.05
        assert max(apart) <= 3.0 / 0.05 + 10.0

    def test_closing_stops_a_look_at_the_next_cell_and_does_not_wait_for_it(self, sweep: Sweep):
        reached, go_on = threading.Event(), threading.Event()
        cells, published = list[int](), list[list[Standing]]()
        ended = threading.Event()

        def look(*_: object) -> Iterator[Standing]:
            try:
                for number, cell in enumerate(sweep.plan.cells * 9):
                    cells.append(number)
                    reached.set()
                    assert go_on.wait(5)
                    yield Standing(cell=cell, seed_block=0, blocks=0, score=None)
            finally:
                ended.set()

        looks = Looks(look, published.append)
        looks.ask(sweep.plan, FinishedUnits(sweep.plan.units))
        assert reached.wait(5)
        looks.close()  # the look stands still: this would never return if it waited
        go_on.set()
        assert ended.wait(5)
        assert (cells, published) == ([0], [])

    def test_what_was_looked_at_last_is_known_without_computing(self, sweep: Sweep):
        live = LiveScores(sweep.storage, sweep.measures, sweep.references())
        assert [(one.blocks, one.score) for one in live.known(sweep.plan)] == [(0, None)] * 6
        look = live.look(sweep.plan, leading_blocks(sweep.plan, FinishedUnits(sweep.plan.units)))
        first = next(look)
        known = live.known(sweep.plan)
        assert known[0] is first
        assert [one.score is None for one in known] == [False] + [True] * 5


class TestRounds:
    def test_they_are_those_of_the_cell_that_has_fewest(self, sweep: Sweep):
        units = list(sweep.plan.units)
        for seed in range(5):
            random.Random(seed).shuffle(units)
            finished, work = FinishedUnits(()), sweep.plan
            for number, unit in enumerate(units):
                if number == 40:
                    work = sweep.plan.without({sweep.plan.cells[1]})
                finished.add(unit)
                assert finished.rounds(work) == FinishedUnits(units[: number + 1]).rounds(work)

    def test_asking_after_every_unit_costs_a_round_about_one_question_a_cell(
        self, sweep: Sweep, monkeypatch: pytest.MonkeyPatch
    ):
        asked = 0
        blocks_of = FinishedUnits.leading_blocks

        def counted(self: FinishedUnits, work: SweepPlan, cell: Cell, block: int) -> int:
            nonlocal asked
            asked += 1
            return blocks_of(self, work, cell, block)

        monkeypatch.setattr(FinishedUnits, "leading_blocks", counted)
        cells = tuple(replace(sweep.plan.cells[0], namespace=n) for n in range(200))
        work = replace(sweep.plan, cells=cells, seed_blocks=1, units=())
        finished = FinishedUnits(())
        units = [unit for row in zip(*map(work.units_of, cells), strict=True) for unit in row]
        for unit in units:
            finished.add(unit)
            finished.rounds(work)
        assert finished.rounds(work) == 10
        assert asked <= 4 * len(units)


def test_minima_are_plain_values_of_three_blocks_under_their_own_name(sweep: Sweep):
    minima = minima_of(sweep.scores())
    assert len(minima) == 2
    for cell, (lowest,) in minima.items():
        raw = [s.records[0].raw for s in sweep.scores() if s.cell == cell]
        assert lowest.metric == "fd1k.pixels@eeeeeeee.min3"
        assert lowest.minimum == min(raw)
    assert minima_of([s for s in sweep.scores() if s.seed_block < 2]) == {}
    assert minima_lines(minima)[0].startswith("fd1k.pixels@eeeeeeee.min3: ")


def test_pace_counts_this_start_alone_and_follows_a_plan_that_shrinks(
    sweep: Sweep, tmp_path: Path
):
    work = replace(sweep.plan, finished=frozenset(sweep.plan.units[:10]))
    pace, finished = Pace(work), FinishedUnits(work.finished)
    assert pace.progress().calls_per_s == 0
    unit = work.units[10]
    finished.add(unit)
    pace.count(unit)
    assert (pace.progress().units_done, pace.progress().units) == (11, 63)
    assert pace.progress().calls_done == 8 * 300
    less = work.without({work.cells[1]})
    pace.follow(less, finished)
    assert (pace.progress().units, pace.progress().calls) == (33, 9000)

"""A search's file: a trial with values left open, checked as a whole before anything starts."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fleetstep.config import (
    AmedExperiment,
    AshaSpec,
    Experiment,
    GridSearchSpec,
    PbtSpec,
    SearchSpec,
    Space,
    SweepSpec,
    baseline_spec,
    dump,
    load,
    rungs,
    seeded_spec,
    trial_spec,
    trials_of,
)
from fleetstep.config.search_checks import SEARCH as SEARCH_CHECKS
from fleetstep.errors import ConfigError
from tiny_experiment import PRESETS

SEARCH = f"""
name: digits-speed
trial:
  kind: train
  base: {PRESETS / "digits-edm.yaml"}
  training: {{images: 32000, snapshot_every: 10%}}
space:
  training:
    optimizer: {{lr: {{log_uniform: [1e-4, 1e-2]}}}}
  strategies:
    choice:
      plain: []
      fdm: [{{kind: fdm, multiplier: {{uniform: [1, 3]}}}}]
      speed: [{{kind: speed, threshold: {{kind: quantile, q: 0.7}}, k: {{choice: [1, 5]}}}}]
searcher: {{kind: random, trials: 6}}
scheduler: {{kind: asha, grace: 10%, reduction: 3}}
objectives: [held_out]
confirm: {{seeds: [1, 2], baseline: {{strategies: []}}}}
"""
SWEEP = """
name: solvers
trial: {kind: sweep, runs: [runs/x], metrics: [fd], samples: 1000}
space:
  solvers: {choice: {euler: [{kind: euler}], heun: [{kind: heun}]}}
  nfe: {choice: {few: [5], many: [9]}}
searcher: {kind: grid}
objectives: [{kind: score, metric: fd}, nfe]
"""
AMED = """
name: scales
trial: {kind: amed, run: runs/x, training: {images: 256}}
space: {training: {points: {choice: [3, 4]}, scale_dir: {uniform: [0, 0.1]}}}
searcher: {kind: optuna, trials: 4}
objectives: [rmse, wall_s]
"""
PBT = (
    "scheduler={kind: pbt, every: 20%, mutate: [training.optimizer.lr]}",
    "space={training: {optimizer: {lr: {log_uniform: [1e-4, 1e-2]}}}}",
)


@pytest.fixture
def search(tmp_path: Path, digits_path: Path) -> Any:
    """Load a search's text with overrides."""

    def read(*overrides: str, text: str = SEARCH) -> SearchSpec:
        file = tmp_path / "search.yaml"
        file.write_text(text)
        data = [f"trial.data.path={digits_path}"] if text == SEARCH else []
        return load(SearchSpec, file, [*data, *overrides], data_required=text == SEARCH)

    return read


@pytest.fixture
def refused(search: Any) -> Any:
    """Problems of a search's text with overrides."""

    def read(*overrides: str, text: str = SEARCH) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            search(*overrides, text=text)
        return list(caught.value.problems)

    return read


class TestReading:
    def test_the_trial_is_a_file_with_a_base_of_its_own(self, tmp_path, digits_path):
        (tmp_path / "deep").mkdir()
        (tmp_path / "middle.yaml").write_text(
            f"base: {PRESETS / 'digits-edm.yaml'}\n"
            "training: {optimizer: {eps: 0.5}, seed: 4}\n"
            "storage: elsewhere\ntracking: {experiment: other}\n"
            "published: [{paper: FDM, where: Table 2, value: 1.88}]"
        )
        file = tmp_path / "deep" / "search.yaml"
        file.write_text(SEARCH.replace(str(PRESETS / "digits-edm.yaml"), "../middle.yaml"))
        spec = load(SearchSpec, file, [f"trial.data.path={digits_path}"])
        trial = trial_spec(spec, trials_of(spec)[0], name="a", storage="here")
        assert (trial.training.optimizer.eps, trial.training.seed) == (0.5, 4)
        assert (trial.training.images, trial.training.global_batch) == (32000, 128)
        # What the search says is not the base's affair.
        assert (trial.name, trial.storage, trial.published) == ("a", "here", ())
        assert trial.tracking.experiment == "fleetstep"

    def test_a_circle_of_bases_is_named(self, tmp_path):
        file = tmp_path / "search.yaml"
        file.write_text("trial: {kind: train, base: search.yaml}")
        with pytest.raises(ConfigError, match="goes round in a circle"):
            load(SearchSpec, file)
        file.write_text("trial: {kind: train, base: 3}")
        with pytest.raises(ConfigError, match=r"trial\.base: must be the path of a file, got 3"):
            load(SearchSpec, file)

    @pytest.mark.parametrize("text", [SEARCH, SWEEP, AMED])
    def test_its_text_reads_back_as_the_same(self, search, tmp_path, text):
        spec = search(text=text)
        file = tmp_path / "resolved.yaml"
        file.write_text(dump(spec))
        again = load(SearchSpec, file, data_required=False)
        assert again == spec
        assert again.space.dimensions == spec.space.dimensions
        assert dump(again) == dump(spec)

    def test_overrides_reach_trial_space_and_searcher(self, search):
        spec = search(
            "space.training.optimizer.lr={log_uniform: [1e-4, 1e-3]}",
            "space.strategies.choice.fdm=[]",
            "searcher.trials=4",
            "trial.training.seed=7",
        )
        found = trials_of(spec)
        assert len(found) == 4
        assert all(1e-4 <= one["training.optimizer.lr"] <= 1e-3 for one in found)
        assert [one.key for one in spec.space.dimensions] == [
            "training.optimizer.lr", "strategies", "strategies/speed/0.k",
        ]  # fmt: skip
        assert trial_spec(spec, found[0], name="t", storage="s").training.seed == 7

    def test_it_is_checked_without_torch_and_ray(self, tmp_path):
        (tmp_path / "s.yaml").write_text(SEARCH)
        code = (
            "import sys\nfrom pathlib import Path\n"
            "from fleetstep.config import SearchSpec, load\n"
            "try: load(SearchSpec, Path(sys.argv[1]))\n"
            "except Exception as error: print(error)\n"
            "print([m for m in ('torch', 'ray', 'mlflow', 'optuna') if m in sys.modules])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "s.yaml")],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert "trial.data.path: data/digits is not a packed dataset" in done.stdout
        assert done.stdout.count("data/digits is not") == 1
        assert done.stdout.strip().endswith("[]")


class TestTrials:
    def test_random_trials_are_the_draws_of_the_space(self, search):
        spec = search("searcher.seed=3")
        assert trials_of(spec) == [spec.space.sample(3, index) for index in range(6)]
        assert trials_of(search("searcher.seed=3", "searcher.trials=2")) == trials_of(spec)[:2]

    def test_no_point_is_drawn_twice_and_a_space_can_be_drawn_empty(self, search, refused):
        small = (
            "space={strategies: {choice: {plain: [], warmup: [{kind: warmup}]}}, "
            "network: {dropout: {choice: [0, 0.1, 0.2]}}}"
        )
        spec = search(small, "searcher.trials=6")
        found = trials_of(spec)
        assert sorted(map(str, found)) == sorted(map(str, spec.space.grid()))
        draws = [spec.space.sample(0, index) for index in range(100)]
        first = [draws.index(one) for one in found]
        assert first == sorted(first)
        assert first[-1] > 5  # there was one to pass over
        assert refused(small, "searcher.trials=7") == [
            "searcher.trials: 7 trials are asked for, and this space has 6 points; use at most 6, "
            "or grid"
        ]

    def test_a_grid_is_all_of_them_and_optuna_is_not_known(self, search):
        assert trials_of(search(text=SWEEP)) == [
            {"solvers": solver, "nfe": nfe}
            for solver in ("euler", "heun")
            for nfe in ("few", "many")
        ]  # fmt: skip
        assert trials_of(search(text=AMED)) is None

    def test_a_trial_is_what_its_kind_says(self, search, digits_path):
        spec = search("tracking.experiment=speed", "cluster.address=ray://x:1")
        assignment = {
            "training.optimizer.lr": 0.002, "strategies": "fdm",
            "strategies/fdm/0.multiplier": 2.0,
        }  # fmt: skip
        trial = trial_spec(spec, assignment, name="digits-speed-3", storage="runs/t")
        assert isinstance(trial, Experiment)
        assert (trial.training.optimizer.lr, trial.strategies[0].multiplier) == (0.002, 2.0)
        assert (trial.name, str(trial.folder)) == ("digits-speed-3", "runs/t/digits-speed-3")
        assert (trial.tracking.experiment, trial.cluster.address) == ("speed", "ray://x:1")
        assert (trial.cluster.workers, trial.evaluate) == (2, None)
        with pytest.raises(ConfigError, match="strategies: 'fmd' is not an option"):
            trial_spec(spec, {**assignment, "strategies": "fmd"}, name="x", storage="y")

    def test_a_trial_that_nobody_could_foresee_is_checked_too(self, search):
        # By its model, and by what its parts disagree on.
        spec = search()
        for name, value, says in (
            ("images", 1.5, r"training\.images = 1\.5"),
            ("global_batch", 129, r"global_batch 129 is not a multiple of 2 workers"),
        ):
            space = Space.parse({"training": {name: {"uniform": [1, 200]}}})
            bad = spec.model_copy(update={"space": space})
            with pytest.raises(ConfigError, match=says):
                trial_spec(bad, {f"training.{name}": value}, name="x", storage="y")

    def test_a_sweeps_trial_is_one_cell_on_the_searchs_cluster(self, search):
        spec = search("cluster.address=auto", text=SWEEP)
        trial = trial_spec(spec, {"solvers": "heun", "nfe": "many"}, name="a", storage="b")
        assert isinstance(trial, SweepSpec)
        assert ([one.kind for one in trial.solvers], trial.nfe) == (["heun"], (9,))
        assert (trial.name, trial.storage, trial.address) == ("a", "b", "auto")

    def test_the_space_may_say_what_the_trial_lacks(self, search, tmp_path):
        # Points or nfe are required, and the space gives them.
        spec = search(text=AMED)
        snapshot = tmp_path / "run"
        snapshot.mkdir()
        (snapshot / "snapshot.json").write_text('{"tracks": {"ema": 1}, "config": {}}')
        here = search(f"trial.run={snapshot}", text=AMED)
        assignment = {"training.points": "4", "training.scale_dir": 0.05}
        trial = trial_spec(here, assignment, name="a", storage="b")
        assert isinstance(trial, AmedExperiment)
        assert (trial.training.points, trial.training.scale_dir) == (4, 0.05)
        assert spec.trial.tree["training"] == {"images": 256}

    def test_winner_and_baseline_from_a_seed(self, search):
        spec = search("confirm.baseline.training={optimizer: {lr: 0.5}}")
        winner = {
            "training.optimizer.lr": 0.002,
            "strategies": "speed",
            "strategies/speed/0.k": "5",
        }
        trained = seeded_spec(spec, winner, seed=2, name="w", storage="s")
        base = baseline_spec(spec, seed=2, name="b", storage="s")
        assert (trained.training.seed, base.training.seed) == (2, 2)
        assert (trained.strategies[0].kind, base.strategies) == ("speed", ())
        assert (trained.training.optimizer.lr, base.training.optimizer.lr) == (0.002, 0.5)
        assert base.training.images == trained.training.images == 32000


class TestRungs:
    def test_grace_times_powers_of_the_reduction_below_the_budget(self, search):
        assert rungs(search()) == (3200, 9600, 28800)
        assert rungs(search("scheduler.grace=3200", "scheduler.reduction=2")) == (
            3200, 6400, 12800, 25600,
        )  # fmt: skip
        assert rungs(search("scheduler={kind: fifo}")) == ()
        assert rungs(search(*PBT)) == (6400, 12800, 19200, 25600)

    @pytest.mark.parametrize("reduction", [1.5, 2, 2.5, 3, 4, 10])
    def test_no_rung_is_lost_to_rounding(self, reduction: float):
        for power in range(1, 8):
            budget = math.ceil(1000 * reduction**power) + 1
            found = AshaSpec(grace=1000, reduction=reduction).rungs(budget)
            assert len(found) == power + 1
            assert all(rung >= 1000 * reduction**i > rung - 1 for i, rung in enumerate(found))
        assert AshaSpec(grace=1000, reduction=2).rungs(2000) == (1000,)

    def test_grace_and_every_within_the_budget(self):
        assert AshaSpec(grace="100%").rungs(100) == AshaSpec(grace=0).rungs(100) == ()
        assert PbtSpec(every=0, mutate=("x",)).rungs(100) == ()
        assert PbtSpec(every=50, mutate=("x",)).rungs(100) == (50,)


class TestObjectives:
    def test_what_each_is_called_and_wants(self, search):
        spec = search(
            "objectives=[held_out, {kind: score, metric: fd}, {kind: score, metric: recall, "
            "nfe: 9}, wall_s]",
            "scheduler={kind: fifo}",
        )
        assert [(one.name, one.goal) for one in spec.objectives] == [
            ("held_out/loss", "min"), ("score/fd", "min"), ("score/recall.nfe9", "max"),
            ("wall_s", "min"),
        ]  # fmt: skip

    def test_the_held_out_loss_has_the_trackers_name(self, search):
        from fleetstep.reporting.records import HELD_OUT_LOSS

        assert search().objectives[0].name == HELD_OUT_LOSS

    def test_a_score_is_the_trials_evaluate_section(self, search):
        score = "{kind: score, metric: %s, nfe: 9, every: 10%%, solver: {kind: heun}}"
        spec = search(
            f"objectives=[{score % 'fd'}, {score % 'kid'}]",
            "trial.evaluate={samples: 2000, labels: balanced}",
        )
        trial = trial_spec(spec, trials_of(spec)[0], name="t", storage="s")
        assert trial.evaluate.metrics == ("fd", "kid")
        assert ([one.kind for one in trial.evaluate.solvers], trial.evaluate.nfe) == (
            ["heun"],
            (9,),
        )
        assert (trial.evaluate.every, trial.evaluate.samples) == ("10%", 2000)
        assert trial.evaluate.labels == "balanced"
        filled = spec.objectives[1].filled(trial.evaluate)
        assert (filled.metric, filled.nfe, filled.samples, filled.every) == ("kid", 9, 2000, "10%")
        assert filled.extractor.kind == "fs-rn20"
        base = baseline_spec(spec, seed=1, name="b", storage="s")
        assert base.evaluate == trial.evaluate


class TestChecks:
    """Problems of the parts against each other."""

    @pytest.mark.parametrize(
        ("overrides", "says"),
        [
            (["objectives=[train/loss]"], "objectives.0 = 'train/loss': the training loss is no"),
            (["objectives=[loss]"], "objectives.0 = 'loss': the training loss is no objective"),
            (["objectives=[]"], "objectives = []: name at least one"),
            (["objectives=[held_out, held_out]"], "objectives: held_out/loss is listed twice"),
            (
                ["objectives=[wall_s, held_out]"],
                "objectives.0: wall_s is a cost, and the first objective, by which trials are",
            ),
            (
                ["objectives=[held_out, rmse]"],
                "objectives.1: trials of kind train have no rmse to compare; they have held_out, "
                "score, images_seen, wall_s",
            ),
            (["objectives=[held_out, nfe]"], "objectives.1: trials of kind train have no nfe"),
            (["space={}"], "space: leaves nothing open"),
            (["space={training: {images: 320}}"], "space: leaves nothing open"),
            (
                ["space={training: {seed: {integers: [0, 9]}}}"],
                "space.training.seed: the seed is an identity and no quantity",
            ),
            (
                ["space.training.heldout={bins: {choice: [4, 8]}}"],
                "space.training.heldout.bins: changes training.heldout, which decides how held",
            ),
            (
                ["space.process={choice: {a: {p_std: 1.0}, b: {p_std: 1.3}}}"],
                "space.process: changes process.p_std, which decides how held_out is measured",
            ),
            (
                ["space.training={choice: {a: {heldout: {bins: 4}}, b: {seed: 2}}}"],
                "space.training: changes training.heldout, which decides how held_out is meas",
            ),
            (["trial.name=x"], "trial.name: is of the search and not of its trials"),
            (["space.storage=x"], "space.storage: is of the search and not of its trials"),
            (["confirm.baseline.tracking={}"], "confirm.baseline.tracking: is of the search"),
            (["trial.cluster.address=auto"], "trial.cluster.address: all trials run on one"),
            (["trial.base=x.yaml"], "trial.base: is read with the file that it stands in"),
            (["confirm.seeds=[1, 1]"], "confirm.seeds = [1, 1]: each seed once, got 1, 1"),
            (["confirm.seeds=[1]"], "confirm.seeds = [1]: tuple should have at least 2 items"),
            (["tracking.uri=http://u:p@h"], "tracking.uri: 'htt***://u:***@h' holds"),
            (["trial.kind=fit"], "trial.kind = 'fit': input should be 'train', 'sweep' or 'amed'"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, refused, overrides, says):
        (found,) = refused(*overrides)
        assert found.startswith(says)

    def test_a_grid_is_finite_and_not_too_long(self, refused):
        found = refused("searcher={kind: grid}")
        assert [line.partition(": ")[0] for line in found] == [
            "space.training.optimizer.lr", "space.strategies/fdm/0.multiplier",
        ]  # fmt: skip
        long = "{training: {log_every: {integers: [1, %d]}}}"
        parts = {"searcher": GridSearchSpec(), "space": Space.parse(yaml.safe_load(long % 10_000))}
        assert not [line for check in SEARCH_CHECKS for line in check(parts)]
        parts["space"] = Space.parse(yaml.safe_load(long % 10_001))
        (found,) = (line for check in SEARCH_CHECKS for line in check(parts))
        assert found.startswith(
            "searcher: a grid has at most 10,000 points, and this space has 10"
        )

    def test_what_a_network_predicts_changes_no_measure(self, search):
        search("space={process: {prediction: {choice: [F, x0]}}}", "searcher={kind: grid}")

    def test_replicates_are_a_choice_of_seeds(self, search):
        spec = search("space={training: {seed: {choice: [0, 1]}}}", "searcher={kind: grid}")
        assert trials_of(spec) == [{"training.seed": "0"}, {"training.seed": "1"}]

    @pytest.mark.parametrize(
        ("overrides", "says"),
        [
            (["scheduler.grace=0"], "scheduler.grace: 0 is 0 images, and must lie in 1 .. 31,999"),
            (["scheduler.grace=100%"], "scheduler.grace: 100% is 32,000 images, and must lie in"),
            (
                ["trial.training.snapshot_every=20%"],
                "scheduler.grace: 10% decides at 3,200 images, where trial.training.snapshot_every"
                " = 20%, every 6,400 images, gives no value; use trial.training.snapshot_every: "
                "10%",
            ),
            (
                ["trial.training.snapshot_every=1500"],
                "scheduler.grace: 10% decides at 3,200 images, where trial.training.snapshot_every"
                " = 1500, every 1,500 images, gives no value; use trial.training.snapshot_every: "
                "1600",
            ),
            (
                ["scheduler.reduction=2.5"],
                "scheduler.grace: 10% decides at 8,000 images, where trial.training.snapshot_every"
                " = 10%, every 3,200 images, gives no value; use trial.training.snapshot_every: "
                "800",
            ),
            (
                ["objectives=[{kind: score, metric: fd}]"],
                "scheduler.grace: 10% decides at 3,200 images, where objectives.0.every = 20%, "
                "every 6,400 images, gives no value; use objectives.0.every: 10%",
            ),
            (
                ["space.training.images={choice: [32000, 64000]}"],
                "space.training.images: changes training.images, and asha compares trials after",
            ),
        ],
    )
    def test_a_value_at_every_rung(self, refused, overrides, says):
        (found,) = refused(*overrides)
        assert found.startswith(says)

    def test_what_is_proposed_for_the_rungs_works(self, search):
        search("trial.training.snapshot_every=1600")
        search("scheduler.reduction=2.5", "trial.training.snapshot_every=800")

    @pytest.mark.parametrize(
        ("overrides", "says"),
        [
            (["searcher.trials=3"], "searcher.trials: a population has at least 4 trials, got 3"),
            (["searcher={kind: optuna, trials: 9}"], "searcher: optuna decides what is tried"),
            (
                ["scheduler.mutate=[lr]"],
                "scheduler.mutate: lr is no dimension of the space; dimensions: training.o",
            ),
            (
                ["space.training.seed={choice: [0, 1]}"],
                "space.training.seed: cannot change in the middle of a training",
            ),
            (
                ["space.network={channels: {choice: [8, 16]}}"],
                "space.network.channels: cannot change in the middle of a training",
            ),
            (
                ["space.strategies=[{kind: tskdif_cur, clusters: {integers: [2, 9]}}]"],
                "space.strategies.0.clusters: cannot change in the middle of a training",
            ),
            (
                ["space.strategies=[{kind: warmup, release: {choice: [drop, never]}}]"],
                "space.strategies.0.release: pbt changes numbers of strategies only",
            ),
            (["scheduler.quantile=0.6"], "scheduler.quantile = 0.6: input should be less than or"),
            (
                ["scheduler.every=15%"],
                "scheduler.every: 15% decides at 4,800 images, where trial.training.snapshot_every"
                " = 10%, every 3,200 images, gives no value; use trial.training.snapshot_every: "
                "2400",
            ),
        ],
    )
    def test_a_population_takes_over_what_fits(self, refused, overrides, says):
        (found,) = refused(*PBT, *overrides)
        assert found.startswith(says)

    def test_a_population_may_change_strategies_numbers(self, search):
        search(*PBT, "space.strategies=[{kind: fdm, multiplier: {uniform: [1, 3]}}]")
        search(*PBT, "space.training.label_dropout={choice: [0, 0.1]}")

    def test_conditional_dimensions_are_no_population(self, refused):
        found = refused("scheduler={kind: pbt, mutate: [training.optimizer.lr]}")
        assert [line.partition(": ")[0] for line in found] == [
            "space.strategies", "space.strategies/fdm/0.multiplier",
            "space.strategies/speed/0.k",
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("text", "overrides", "says"),
        [
            (SWEEP, ["scheduler={kind: asha}"], "scheduler: trials of kind sweep report once, at"),
            (AMED, ["scheduler={kind: asha}"], "scheduler: trials of kind amed report once, at"),
            (SWEEP, ["objectives=[held_out]"], "objectives.0: trials of kind sweep have no held_"),
            (
                SWEEP,
                ["objectives=[{kind: score, metric: fd, nfe: 9}]"],
                "objectives.0.nfe: the cell of a sweep says it itself",
            ),
            (
                SWEEP,
                ["objectives=[{kind: score, metric: kid}]"],
                "trial.metrics: kid of fs-rn20 is an objective, and is not measured",
            ),
            (
                SWEEP,
                ["space.nfe=[5, 9]"],
                "space.nfe: a trial scores one cell, and has one of the",
            ),
            (SWEEP, ["trial.seed_blocks=3"], "trial.seed_blocks: a trial has one score; use 1"),
            (
                SWEEP,
                ["space.samples={choice: [1000, 2000]}"],
                "space.samples: changes samples, which decides how score is measured",
            ),
            (
                SWEEP,
                ["confirm={seeds: [1, 2], baseline: {}}"],
                "confirm: trains winner and baseline from several seeds, and trials of kind sweep",
            ),
            (SWEEP, ["space.address=auto"], "space.address: all trials run on one cluster"),
            (
                AMED,
                ["trial.evaluation={latents: 0}"],
                "trial.evaluation.latents: 0 makes no repor",
            ),
            (
                AMED,
                ["space.training.points={choice: [1, 3]}"],
                "points=1: training.points = 1: input should be greater than or equal to 2",
            ),
        ],
    )
    def test_sweeps_and_predictors(self, refused, text, overrides, says):
        (found,) = refused(*overrides, text=text)
        assert found.startswith(says)


class TestProbes:
    """Every value goes through the trial's own model and checks, and is named where it fails."""

    @pytest.mark.parametrize(
        ("override", "says"),
        [
            (
                "space.training.optimizr={lr: {uniform: [0, 1]}}",
                ["space.training.optimizr: unknown key; did you mean 'optimizer'?"],
            ),
            (
                "space.training.optimizer.lr={uniform: [-1, 1]}",
                ["lr=-1: training.optimizer.lr = -1.0: input should be greater than 0"],
            ),
            (
                "space.training.label_dropout={uniform: [0, 1.5]}",
                [
                    "label_dropout=1.5: training.label_dropout = 1.5: input should be less than "
                    "or equal to 1"
                ],
            ),
            (
                # Said once, by the number that is refused, and not of its option as well.
                "space.strategies.choice.fdm=[{kind: fdm, multiplier: {uniform: [-1, 3]}}]",
                [
                    "strategies=fdm multiplier=-1: strategies.0.multiplier = -1.0: input should "
                    "be greater than or equal to 0"
                ],
            ),
            (
                # Said once, of the option, and not of both ends of what is under it.
                "space.strategies.choice.fdm=[{kind: fdm, multiplyer: {uniform: [1, 3]}}]",
                ["strategies=fdm: strategies.0.multiplyer: unknown key; did you mean "],
            ),
            (
                "space.training.global_batch={choice: [129, 128, 127]}",
                [
                    "global_batch=129: training.global_batch: global_batch 129 is not a multiple",
                    "global_batch=127: training.global_batch: global_batch 127 is not a multiple",
                ],
            ),
            (
                "trial.training.global_batch=129",
                ["trial.training.global_batch: global_batch 129 is not a multiple of 2 workers"],
            ),
            (
                "trial.grid={nfe: 8, solver: {kind: heun}}",
                ["trial.grid.nfe: heun cannot make exactly 8"],
            ),
            (
                "confirm.baseline.strategies=[{kind: fmd}]",
                ["confirm.baseline: strategies.0.kind: 'fmd' is not a kind"],
            ),
        ],
    )
    def test_the_value_to_blame_is_named(self, refused, override, says):
        found = refused(override)
        assert len(found) == len(says)
        for line, beginning in zip(found, says, strict=True):
            assert line.startswith(beginning)

    def test_what_the_space_mends_is_no_problem_but_for_a_baseline_without_it(
        self, search, refused
    ):
        search("trial.training.optimizer.lr=-1", "confirm=null")
        (found,) = refused("trial.training.optimizer.lr=-1")
        assert found.startswith("confirm.baseline: training.optimizer.lr = -1: input should be")

    def test_combinations_that_fail_are_found_among_the_trials(self, refused):
        # Each value fits the first of the other.
        space = "{global_batch: {choice: [132, 128]}, micro_batch: {choice: [1, 66]}}"
        space = f"space={{training: {space}}}"
        (found,) = refused(space, "searcher={kind: grid}", "trial.cluster.workers=2")
        assert found.startswith("global_batch=128 micro_batch=66: training.global_batch: global_b")

    def test_five_mixed_mistakes_are_told_together(self, refused):
        found = refused(
            "trial.name=mine",
            "space.training.optimizr={lr: {uniform: [0, 1]}}",
            "space.strategies.choice.both=[{kind: fdm}, {kind: fdm}]",
            "objectives=[held_out, rmse]",
            "confirm.baseline.strategies=[{kind: fmd}]",
            "searcher.trials=0",
            "trial.training.snapshot_every=20%",
        )
        beginnings = [
            "searcher.trials = 0: input should be greater than 0", "trial.name: is of the search",
            "objectives.1: trials of kind train have no rmse", "scheduler.grace: 10% decides",
            "space.training.optimizr: unknown key", "strategies=both: strategies: ",
            "confirm.baseline: strategies.0.kind: 'fmd' is not a kind",
        ]  # fmt: skip
        assert len(found) == len(beginnings)
        for line, beginning in zip(found, beginnings, strict=True):
            assert line.startswith(beginning)

    def test_problems_of_reading_the_space_stand_beside_others(self, refused):
        found = refused("space.training.optimizer.lr={uniform: [2, 1]}", "trial.kind=fit")
        assert found == [
            "trial.kind = 'fit': input should be 'train', 'sweep' or 'amed'",
            "space.training.optimizer.lr: uniform: low must lie below high, got [2, 1]",
        ]


def test_the_resolved_text_says_the_search_and_no_more(search):
    tree = yaml.safe_load(dump(search()))
    assert list(tree) == list(SearchSpec.model_fields)
    assert "name" not in tree["trial"]
    assert tree["space"]["strategies"]["choice"]["plain"] == []

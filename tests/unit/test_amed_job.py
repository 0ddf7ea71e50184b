"""The pieces of a predictor's training without Ray: checkpoints, metrics, preview, report, and
what a predictor is refused for.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from fleetstep.config import AmedEvaluationSpec, AmedExperiment, load
from fleetstep.durable import write_json
from fleetstep.errors import (
    CheckpointError,
    ConfigError,
    NonFiniteError,
    ResumeError,
    SamplingError,
)
from fleetstep.orchestration import amed_worker
from fleetstep.orchestration.amed_checkpoint import choose_amed_start, load_state, save_state
from fleetstep.orchestration.amed_job import train_amed
from fleetstep.orchestration.amed_preview import preview_amed
from fleetstep.orchestration.amed_report import AmedReport, base_solver, make_report, read_report
from fleetstep.orchestration.amed_worker import (
    AmedAssignment,
    facts_of,
    metrics_of,
    run_amed_worker,
)
from fleetstep.orchestration.snapshots import find_snapshots, load_denoiser
from fleetstep.orchestration.sweep_plan import SnapshotRef
from fleetstep.reporting.amed import Contender, Spread, error_figure, learned_figure, report_table
from fleetstep.reporting.plots import write_plot
from fleetstep.sampling.amed.files import save_predictor
from fleetstep.sampling.amed.training import AmedTrainer, LoopReport, TrainerState
from fleetstep.sampling.spec import AmedSpec, AmedStudentSpec, GuidanceSpec
from fleetstep.sampling.trajectory import levels_for, sample
from fleetstep.training.checkpoint import CheckpointStore
from fleetstep.training.group import Group
from fleetstep.training.resume import choose_start
from small_run import write_small_run

CPU = torch.device("cpu")
ALONE = Group(0, 1, CPU)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, digits_path: Path) -> Path:
    return write_small_run(tmp_path_factory.mktemp("runs"), digits_path)


@pytest.fixture(scope="module")
def snapshot(run_folder: Path) -> SnapshotRef:
    (found,) = find_snapshots([str(run_folder)], which="last", track="ema")
    return found


@pytest.fixture(scope="module")
def experiment(run_folder: Path) -> AmedExperiment:
    overrides = (
        f"run={run_folder}",
        "name=p",
        "training={points: 3, batch: 4, images: 8, student: {kind: ipndm}}",
        "evaluation={latents: 6, reference_nfe: 24, batch: 4}",
    )
    return load(AmedExperiment, None, overrides)


def trainer_of(experiment: AmedExperiment, snapshot: SnapshotRef) -> AmedTrainer:
    return AmedTrainer(
        load_denoiser(snapshot, "ema", device=CPU),
        experiment.training,
        shape=snapshot.shape,
        classes=snapshot.classes,
        device=CPU,
    )


@pytest.fixture(scope="module")
def trained(
    experiment: AmedExperiment, snapshot: SnapshotRef, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "predictor"
    trainer = trainer_of(experiment, snapshot)
    trainer.run_loop(0)
    facts = trainer.facts(
        snapshot=snapshot.digest, track="ema", run=snapshot.run, images_seen=snapshot.images_seen
    )
    save_predictor(folder, trainer.predictor, facts)
    return folder


class TestCheckpoints:
    def test_a_training_goes_on_bit_for_bit(
        self, experiment: AmedExperiment, snapshot: SnapshotRef, tmp_path: Path
    ):
        whole, half = (trainer_of(experiment, snapshot) for _ in range(2))
        reports = [whole.run_loop(index) for index in range(2)]
        half.run_loop(0)
        store, facts = CheckpointStore(tmp_path), facts_of(experiment, snapshot)
        save_state(store, half.state_dict(), facts, loop=1, images_seen=4, group=ALONE)

        start = choose_start(store, "must", facts)
        assert start is not None
        assert (start.step, start.images_seen) == (1, 4)
        again = trainer_of(experiment, snapshot)
        again.load_state_dict(load_state(start))

        assert again.loops_done == 1
        assert again.run_loop(1) == reports[1]
        ours, theirs = whole.state_dict(), again.state_dict()
        assert ours.numbers == theirs.numbers
        for name, value in ours.tensors.items():
            assert torch.equal(value, theirs.tensors[name]), name

    def test_the_manifest_is_last_and_older_ones_go_after_it(
        self, experiment: AmedExperiment, snapshot: SnapshotRef, tmp_path: Path
    ):
        store, facts = CheckpointStore(tmp_path, keep=2), facts_of(experiment, snapshot)
        state = TrainerState({"w": torch.ones(2)}, {"loops_done": 1, "updates": 2})

        def save(loop: int, on_event: Callable[[str], None] = lambda name: None) -> None:
            save_state(
                store, state, facts, loop=loop, images_seen=loop, group=ALONE, on_event=on_event
            )

        for loop in (1, 2, 3):
            save(loop)
        assert [folder.name for folder in store.folders()] == ["step-00000003", "step-00000002"]

        def die(name: str) -> None:
            if name == "save:before-manifest":
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            save(4, die)
        latest = store.latest()
        assert latest is not None
        assert latest.step == 3
        assert store.skipped[0].path.name == "step-00000004"
        save(4)
        assert store.latest().step == 4  # type: ignore[union-attr]

    def test_nothing_that_is_not_finite_is_kept(
        self, experiment: AmedExperiment, snapshot: SnapshotRef, tmp_path: Path
    ):
        store, facts = CheckpointStore(tmp_path), facts_of(experiment, snapshot)
        state = TrainerState({"w": torch.tensor([1.0, float("nan")])}, {"loops_done": 1})
        with pytest.raises(NonFiniteError, match="step-00000001 is not finite: w"):
            save_state(store, state, facts, loop=1, images_seen=4, group=ALONE)
        assert store.folders() == []

    def test_a_disk_that_refuses_is_an_error_of_ours(
        self, experiment: AmedExperiment, snapshot: SnapshotRef, tmp_path: Path
    ):
        (tmp_path / "file").write_text("in the way")
        store, facts = CheckpointStore(tmp_path / "file"), facts_of(experiment, snapshot)
        state = TrainerState({"w": torch.ones(1)}, {"loops_done": 1})
        with pytest.raises(CheckpointError, match="cannot be written"):
            save_state(store, state, facts, loop=1, images_seen=4, group=ALONE)

    def test_another_training_does_not_go_on(
        self, experiment: AmedExperiment, snapshot: SnapshotRef, tmp_path: Path
    ):
        store, facts = CheckpointStore(tmp_path), facts_of(experiment, snapshot)
        state = TrainerState({"w": torch.ones(1)}, {"loops_done": 1})
        save_state(store, state, facts, loop=1, images_seen=4, group=ALONE)
        other = facts_of(experiment, replace(snapshot, digest="0" * 64))
        with pytest.raises(ResumeError, match="another experiment"):
            choose_start(store, "auto", other)

    def test_a_longer_training_is_not_the_start_of_a_shorter_one(
        self, experiment: AmedExperiment, snapshot: SnapshotRef, tmp_path: Path
    ):
        shorter = experiment.model_copy(update={"storage": str(tmp_path)})
        store, facts = CheckpointStore(shorter.folder / "checkpoints"), facts_of(shorter, snapshot)
        state = trainer_of(experiment, snapshot).state_dict()
        save_state(store, state, facts, loop=3, images_seen=12, group=ALONE)
        # Before Ray is asked for anything.
        with pytest.raises(ResumeError, match="on 12 latents, which is more than the 8") as caught:
            train_amed(shorter)
        assert "set training.images to 12 or more, or choose another run name" in str(caught.value)
        with pytest.raises(ResumeError, match="on 12 latents"):
            choose_amed_start(store, "must", facts, shorter.images, ALONE)
        start = choose_amed_start(store, "must", facts, 12)
        assert start is not None
        assert start.images_seen == 12

    def test_a_predictor_says_how_many_latents_it_has_seen(self, trained: Path):
        training = AmedSpec(predictor=str(trained)).facts.training
        assert (training["images"], training["latents_seen"]) == (8, 4)


def test_a_worker_computes_as_exactly_as_training_does(
    experiment: AmedExperiment,
    snapshot: SnapshotRef,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    class Enough(Exception):
        pass

    def load(*_: object, device: torch.device) -> None:
        assert set_up == [device]
        raise Enough

    set_up: list[torch.device] = []
    monkeypatch.setattr(amed_worker, "exact_on_cuda", set_up.append)
    monkeypatch.setattr(amed_worker, "load_trained", load)
    job = AmedAssignment(
        experiment.model_dump_json(), "r", "", str(tmp_path), lambda name: None, snapshot
    )
    with pytest.raises(Enough):
        run_amed_worker(job.as_dict())


def test_every_step_of_a_loop_is_logged():
    report = LoopReport(3, 512, (1.0, 3.0), (0.5, 0.25), 2)
    means = torch.tensor([[0.4, 0.99, 1.0], [0.6, 1.01, 0.9]], dtype=torch.float64)
    metrics = metrics_of(report, means, 100.0)
    assert metrics["train/loss"] == 2.0
    assert (metrics["train/loss_0"], metrics["train/loss_1"]) == (1.0, 3.0)
    assert metrics["train/grad_norm_1"] == 0.25
    assert (metrics["learned/r_0"], metrics["learned/c_1"], metrics["learned/a_1"]) == (
        0.4,
        1.01,
        0.9,
    )
    assert metrics["train/replaced_gradients"] == 2.0


class TestPreview:
    def test_the_work_is_counted(self, experiment: AmedExperiment, snapshot: SnapshotRef):
        preview = preview_amed(experiment)
        # Teacher: 2 levels between, 2 steps of one call each; student: 2 a step less AFS.
        assert (preview.teacher_calls, preview.student_calls, preview.nfe) == (6, 3, 3)
        assert (preview.loops, preview.updates, preview.parameters) == (2, 4, 8971)
        assert (preview.calls, preview.checkpoints) == (72, 2)
        trainer = trainer_of(experiment, snapshot)
        assert preview.levels == trainer.levels
        assert preview.parameters == sum(p.numel() for p in trainer.predictor.parameters())

    def test_what_is_counted_is_what_is_called(
        self, experiment: AmedExperiment, snapshot: SnapshotRef
    ):
        denoiser = load_denoiser(snapshot, "ema", device=CPU)
        trainer = AmedTrainer(
            denoiser,
            experiment.training,
            shape=snapshot.shape,
            classes=snapshot.classes,
            device=CPU,
        )
        trainer.run_loop(0)
        preview = preview_amed(experiment)
        assert denoiser.nfe == preview.teacher_calls + preview.student_calls

    def test_guidance_doubles_it(self, experiment: AmedExperiment, run_folder: Path):
        overrides = [f"run={run_folder}", "name=p", "training={points: 3, guidance: {scale: 2}}"]
        guided = preview_amed(load(AmedExperiment, None, overrides))
        assert (guided.nfe, guided.teacher_calls, guided.backward_calls) == (6, 16, 4)

    @pytest.mark.parametrize(
        ("scale", "dropout", "warned"), [(4, 0.0, True), (1, 0.0, False), (4, 0.1, False)]
    )
    def test_guidance_of_a_run_that_dropped_no_label_is_warned_of(
        self, tmp_path: Path, digits_path: Path, scale: int, dropout: float, warned: bool
    ):
        run = write_small_run(tmp_path, digits_path)
        (file,) = run.glob("snapshots/*/snapshot.json")
        facts = json.loads(file.read_text())
        facts["config"]["training"]["label_dropout"] = dropout
        write_json(file, facts)
        training = f"training={{points: 3, guidance: {{scale: {scale}}}}}"
        preview = preview_amed(load(AmedExperiment, None, [f"run={run}", "name=p", training]))
        line = "  warning: small dropped no label in training"
        assert (line in preview.summary()) == warned
        assert len(preview.as_dict()["warnings"]) == warned

    def test_a_dry_run_prints_it_and_starts_nothing(
        self, run: Callable[..., tuple[int, str, str]], tmp_path: Path, digits_path: Path
    ):
        file = tmp_path / "p.yaml"
        file.write_text("name: p\nrun: runs/nowhere\ntraining: {points: 4}\n")
        code, out, _ = run("amed", "train", file, f"storage={tmp_path}/runs", "--dry-run")
        assert code == 0
        assert "8,950 parameters" in out
        assert "at NFE 5 with an analytical first step" in out
        assert "runs/nowhere is NOT THERE" in out
        assert "train it, or make it of released weights" in out
        assert "fleetstep import edm NETWORK.pkl --out runs/nowhere" in out
        code, out, _ = run("amed", "train", file, "--dry-run", "--json")
        assert json.loads(out)["updates"] == 79 * 3
        code, _, err = run("amed", "train", file, f"storage={tmp_path}/runs")
        assert code == 2
        assert "run: runs/nowhere is neither" in err
        assert not (tmp_path / "runs").exists()


@pytest.fixture(scope="module")
def report(experiment: AmedExperiment, snapshot: SnapshotRef, trained: Path) -> AmedReport:
    return make_report(
        load_denoiser(snapshot, "ema", device=CPU),
        trained,
        experiment.training,
        experiment.evaluation,
        shape=snapshot.shape,
        classes=snapshot.classes,
        group=ALONE,
    )


class TestReport:
    def test_all_are_measured_at_what_they_cost(self, report: AmedReport):
        base, student, teacher, whole = report.contenders
        assert (base.nfe, student.nfe, teacher.nfe, whole.nfe) == (3, 3, 6, 3)
        assert (base.name, whole.name) == ("ipndm(order=4, afs=True)", "ipndm(order=4)")
        assert report.reference == "heun_ab, 24 network calls"
        # Without the analytical call the base stops at other levels, but for the last.
        assert [len(c.rmse) for c in report.contenders] == [2, 2, 2, 1]
        # The teacher is finer than its student, and so closer to the reference.
        assert 0 < teacher.rmse[0] < base.rmse[0]

    def test_learned_outputs_lie_where_they_can(self, report: AmedReport):
        assert set(report.learned) == {"r", "c", "a"}
        for key, low, high in (("r", 0, 1), ("c", 0.99, 1.01), ("a", 0.8, 1.2)):
            for spread in report.learned[key]:
                assert low < spread.low <= spread.mean <= spread.high < high
        # The first call is analytical: its step is the same for all images.
        assert report.learned["r"][0].low == report.learned["r"][0].high
        assert report.learned["r"][1].low < report.learned["r"][1].high

    def test_workers_share_the_latents(
        self,
        report: AmedReport,
        experiment: AmedExperiment,
        snapshot: SnapshotRef,
        trained: Path,
    ):
        class Half(Group):
            """One of two, whose sums are its own."""

            def sum(self, values: torch.Tensor) -> torch.Tensor:
                return values.detach().clone()

            def gather(self, value: object) -> list[object]:
                return [value]

        halves = [
            make_report(
                load_denoiser(snapshot, "ema", device=CPU),
                trained,
                experiment.training,
                experiment.evaluation,
                shape=snapshot.shape,
                classes=snapshot.classes,
                group=Half(rank, 2, CPU),
            )
            for rank in range(2)
        ]
        for i, whole in enumerate(report.contenders):
            squares = [
                sum(half.contenders[i].rmse[n] ** 2 for half in halves)
                for n in range(len(whole.rmse))
            ]
            assert squares == pytest.approx([error**2 for error in whole.rmse], rel=1e-12)

    def test_it_is_written_and_read(self, report: AmedReport, tmp_path: Path):
        (tmp_path / "report.json").write_text(json.dumps(report.as_dict()))
        assert read_report(tmp_path / "report.json") == report
        assert set(report.metrics()) == {
            "report/rmse_base",
            "report/rmse_amed",
            "report/rmse_teacher",
            "report/rmse_base_without_afs",
        }

    def test_ameds_own_base_is_dpm_solver_2(self, trained: Path):
        facts = AmedSpec(predictor=str(trained)).facts
        own = facts.model_copy(update={"student": AmedStudentSpec()})
        assert base_solver(own).label == "dpm2(r=0.5, afs=True)"

    def test_no_image_is_alone_in_a_call(
        self, experiment: AmedExperiment, snapshot: SnapshotRef, trained: Path
    ):
        denoiser = load_denoiser(snapshot, "ema", device=CPU)
        sizes: set[int] = set()
        denoiser.register_forward_pre_hook(lambda _, inputs: sizes.add(len(inputs[0])))
        evaluation = AmedEvaluationSpec(latents=5, reference_nfe=6, batch=2)
        report = make_report(
            denoiser,
            trained,
            experiment.training,
            evaluation,
            shape=snapshot.shape,
            classes=snapshot.classes,
            group=ALONE,
        )
        assert sizes == {2, 3}
        assert report.latents == 5

    @pytest.mark.parametrize(
        ("latents", "counts"),
        [(0, []), (2, [2]), (4, [4]), (5, [5]), (6, [4, 2]), (8, [4, 4]), (9, [4, 5])],
    )
    def test_latents_are_cut_into_batches(self, latents: int, counts: list[int]):
        batches = AmedEvaluationSpec(latents=latents, batch=4).batches
        assert [count for _, count in batches] == counts
        assert [first for first, _ in batches] == [sum(counts[:i]) for i in range(len(counts))]

    def test_one_latent_is_refused(self):
        overrides = ["run=r", "name=p", "training={points: 3}", "evaluation={latents: 1}"]
        with pytest.raises(ConfigError, match=r"evaluation\.latents.*use 2 or more, or 0"):
            load(AmedExperiment, None, overrides, data_required=False)

    def test_no_latents_are_no_report(self):
        assert AmedEvaluationSpec(latents=0).latents == 0


def test_figures_show_each_step_and_each_sampler(tmp_path: Path):
    levels = (80.0, 5.0, 0.002)
    contenders = (
        Contender("base", 3, (2.0, 1.0)),
        Contender("amed", 3, (1.0, 0.25)),
        Contender("other levels", 3, (0.5,)),
    )
    learned = {
        "r": (Spread(0.4, 0.4, 0.4), Spread(0.3, 0.1, 0.6)),
        "c": (Spread(1, 0.99, 1.01),) * 2,
    }
    error, outputs = error_figure(levels, contenders), learned_figure("p", levels, learned)
    assert [point.y for point in error.panels[0].series[1].points] == [1.0, 0.25]
    assert [(point.x, point.y) for point in error.panels[0].series[2].points] == [(2, 0.5)]
    assert [panel.title for panel in outputs.panels] == ["r", "c"]
    assert [panel.rules[0].value for panel in outputs.panels] == [0.5, 1.0]
    point = outputs.panels[0].series[0].points[1]
    assert (point.x, point.low, point.high) == (2, 0.1, 0.6)
    for figure in (error, outputs):
        write_plot(figure, tmp_path / "it.png")
        with Image.open(tmp_path / "it.png") as picture:
            assert picture.width > 800
    table = report_table(contenders, 256)
    assert str(table.title) == "RMSE per pixel to the reference, 256 held-out latents"
    assert table.columns[2].header == "RMSE per pixel"
    assert list(table.columns[3].cells) == ["1.00 x", "0.25 x", "0.50 x"]


class TestRefusals:
    def test_its_own_network_is_taken(self, trained: Path, snapshot: SnapshotRef):
        AmedSpec(predictor=str(trained)).check_network(snapshot.digest, "ema", None)

    def test_another_checkpoint(self, trained: Path, snapshot: SnapshotRef):
        solver = AmedSpec(predictor=str(trained))
        with pytest.raises(SamplingError, match="was trained for small at 3,200 images"):
            solver.check_network("0" * 64, "ema", None)
        with pytest.raises(SamplingError, match="track slow"):
            solver.check_network(snapshot.digest, "slow", None)

    def test_another_guidance(self, trained: Path, snapshot: SnapshotRef):
        solver = AmedSpec(predictor=str(trained))
        with pytest.raises(SamplingError, match=r"guidance none, not with scale 2"):
            solver.check_network(snapshot.digest, "ema", GuidanceSpec(scale=2))

    def test_another_number_of_calls(self, trained: Path, snapshot: SnapshotRef):
        solver = AmedSpec(predictor=str(trained))
        with pytest.raises(SamplingError, match="makes 3 network calls, not 5") as caught:
            solver.points_for(5)
        assert "nfe=3" in caught.value.remedy
        assert solver.points_for(3) == 3

    def test_another_schedule(self, trained: Path, snapshot: SnapshotRef):
        denoiser = load_denoiser(snapshot, "ema", device=CPU)
        solver = AmedSpec(predictor=str(trained))
        levels = levels_for(denoiser, solver, 3)
        levels[1] *= 1.5
        x_T = torch.zeros(2, *snapshot.shape, dtype=torch.float64)
        with pytest.raises(SamplingError, match="was trained for 3 points of polynomial"):
            sample(denoiser, solver, levels, x_T, torch.zeros(2, dtype=torch.int64))

    @pytest.mark.parametrize("setting", ["schedule={}", "afs", "thresholding"])
    def test_other_settings(self, trained: Path, setting: str):
        values = {
            "schedule={}": {"schedule": {"kind": "logsnr"}},
            "afs": {"afs": True},
            "thresholding": {"thresholding": {}},
        }[setting]
        with pytest.raises(ValueError, match="stored with the predictor"):
            AmedSpec.model_validate({"predictor": str(trained), **values})

    def test_no_predictor(self, tmp_path: Path, snapshot: SnapshotRef):
        with pytest.raises(SamplingError, match="holds no predictor"):
            AmedSpec(predictor=str(tmp_path)).check_network(snapshot.digest, "ema", None)

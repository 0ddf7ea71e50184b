"""Every preset of the papers: it loads, says what it stands for, prints its plan, and trains."""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fleetstep import rng
from fleetstep.config import AmedExperiment, Experiment, SweepSpec, load
from fleetstep.config.files import read
from fleetstep.data.augmentation import Augmentation
from fleetstep.data.batch import Batch
from fleetstep.errors import ConfigError
from fleetstep.evaluation import inception
from fleetstep.orchestration.amed_preview import preview_amed
from fleetstep.orchestration.pieces import network_of, objective_of
from fleetstep.orchestration.preview import preview_training
from fleetstep.training.checkpoint import CheckpointStore
from fleetstep.training.checkpoint_format import RunFacts
from fleetstep.training.ema import EmaTracks
from fleetstep.training.engine import TorchEngine
from fleetstep.training.loop import Callbacks, Job, train
from fleetstep.training.spec import BatchPlan, ema_beta

PRESETS = Path(__file__).parents[2] / "pipelines" / "presets"


def script() -> ModuleType:
    path = PRESETS.parent / "preset_table.py"
    spec = importlib.util.spec_from_file_location("preset_table", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TABLE = script()
FILES: list[Path] = TABLE.files()
SWEEPS = [path for path in FILES if TABLE.model(path) is SweepSpec]
PREDICTORS = [path for path in FILES if TABLE.model(path) is AmedExperiment]
EXPERIMENTS = [path for path in FILES if TABLE.model(path) is Experiment]
PAPERS = [path for path in EXPERIMENTS if path.parent != PRESETS]
# Networks of others that a preset may name, as `fleetstep import` is told to call them.
RELEASED = {
    "edm-cifar10-32x32-uncond-vp",
    "edm-ffhq-64x64-uncond-vp",
    "edm-imagenet-64x64-cond-adm",
    "cd-lsun-bedroom-256x256",
    *(f"ddpm-{data}" for data in ("cifar10-32", "celebahq-256", "church-256", "bedroom-256")),
}
SPEEDS = ("paper", "released", "theory", "ffhq-dit")
BATCH = 10  # shared equally by ANT-UW's five clusters, and a whole number of reflected pairs


def name(path: Path) -> str:
    return path.relative_to(PRESETS).with_suffix("").as_posix()


def experiment(path: Path, *overrides: str) -> Experiment:
    return load(Experiment, path, overrides, data_required=False)


@pytest.mark.parametrize("path", PAPERS, ids=name)
def test_an_experiment_passes_its_dry_run_and_states_what_it_stands_for(path: Path):
    spec = experiment(path)
    text = preview_training(spec).text()
    assert spec.published
    assert all(entry.text in text for entry in spec.published)
    assert f"process {spec.process.kind}" in text
    assert all(f"  {strategy.label}: " in text for strategy in spec.strategies)
    assert "NOT THERE" in text
    assert ("cannot pack yet" in text) == spec.data.expects.latents  # type: ignore[union-attr]


@functools.cache
def known_networks() -> set[str]:
    return {read(found)["name"] for found in EXPERIMENTS} | RELEASED


@pytest.mark.parametrize("path", SWEEPS, ids=name)
def test_a_sweep_names_runs_of_presets(path: Path):
    sweep = load(SweepSpec, path)
    assert sweep.published or path.stem == "digits-sweep"
    assert {Path(run).name for run in sweep.runs} <= known_networks()
    if not any(solver.adaptive for solver in sweep.solvers):
        assert {entry.nfe for entry in sweep.published} - {None} <= set(sweep.nfe)


@pytest.mark.parametrize("path", SWEEPS, ids=name)
def test_a_sweep_passes_its_dry_run_and_states_what_it_stands_for(
    path: Path, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Neither the runs nor the Inception weights are there.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(inception, "cached_inception", lambda: tmp_path / "inception.pt")
    spec = load(SweepSpec, path)
    code, text, _ = run("sweep", path, "--dry-run")
    assert code == 0
    assert all(f"{network} is NOT THERE" in text for network in spec.runs)
    published = [extractor.kind for extractor in spec.extractors] == ["inception"]
    assert ("the Inception weights are not at" in text) == published
    assert all(f"  published: {entry.text}\n" in text for entry in spec.published)

    code, text, _ = run("sweep", path, "--dry-run", "--json")
    assert code == 0
    shown = json.loads(text)
    assert len(shown["missing"]) == len(spec.runs) + published
    assert [entry["where"] for entry in shown["sweep"]["published"]] == [
        entry.where for entry in spec.published
    ]
    adaptive = sum(solver.adaptive for solver in spec.solvers)
    chosen = (len(spec.solvers) - adaptive) * len(spec.nfe)
    assert len(shown["grid"]) + len(shown["skipped"]) == chosen + adaptive
    assert len(shown["cells"]) == len(shown["grid"]) * len(spec.runs)
    calls = sum(120 if pair["nfe"] is None else pair["nfe"] for pair in shown["grid"])
    assert shown["network_calls"] == calls * spec.samples * len(spec.runs)
    if not adaptive:  # whose published calls nobody can choose
        assert {e.nfe for e in spec.published} - {None} <= {pair["nfe"] for pair in shown["grid"]}
    assert list(tmp_path.iterdir()) == []


def predictor(path: Path, *overrides: str) -> AmedExperiment:
    return load(AmedExperiment, path, overrides, data_required=False)


@pytest.mark.parametrize("path", PREDICTORS, ids=name)
def test_a_predictor_passes_its_dry_run_and_states_what_it_stands_for(path: Path):
    spec = predictor(path)
    assert Path(spec.run).name in known_networks()
    text = preview_amed(spec).text()
    assert all(entry.text in text for entry in spec.published)
    if path.stem != "digits-amed":
        assert spec.training.chosen_nfe in {entry.nfe for entry in spec.published}
    for entry in spec.published:
        assert entry.nfe is not None
        points = (entry.nfe + 1) // 2 + 1
        assert predictor(path, f"training.points={points}").training.chosen_nfe == entry.nfe


def test_no_two_predictors_are_the_same_or_share_a_name():
    specs = [predictor(path) for path in PREDICTORS]
    assert len({spec.name for spec in specs}) == len(specs)
    assert len({spec.identity(spec.run) for spec in specs}) == len(specs)


# Presets whose published numbers have a dagger: a is learned.
TIME: dict[str, set[str]] = {
    "cifar10": {"plugin-ipndm"} | {f"plugin-ipndm-teacher-{t}" for t in ("dpm2", "edm", "dpmpp")},
    "ffhq64": {"plugin-ipndm-time"},
    "imagenet64": set(),
    "lsun-bedroom256": set(),
}


def test_the_recipes_of_amed_as_numbers():
    # Zhou et al. 2024, section 4.1, and the released commands.
    batches = {"cifar10": 128, "ffhq64": 64, "imagenet64": 64, "lsun-bedroom256": 64}
    for path in PREDICTORS:
        if path.parent == PRESETS:
            continue
        training = predictor(path).training
        assert training.batch == batches[path.parent.name]
        assert (training.images, training.lr, training.scale_dir) == (10_000, 5e-3, 0.01)
        assert training.afs
        multistep = training.chosen_teacher.kind in ("ipndm", "dpmpp")
        assert training.chosen_intermediate == (2 if multistep else 1)
        uniform = path.parent.name != "lsun-bedroom256" and training.student.kind == "amed"
        if uniform:
            assert training.chosen_schedule.label == "time_uniform(rho=1)"
        learned_time = training.chosen_scale_time
        assert learned_time == (0.2 if path.stem in TIME[path.parent.name] else 0.0), path


def test_ameds_published_numbers_are_those_of_its_tables():
    amed = PRESETS / "amed"
    found = {
        path.stem: [entry.value for entry in predictor(path).published]
        for path in (amed / "cifar10").glob("*.yaml")
        if path in PREDICTORS
    }
    assert found["amed"] == [28.99, 7.59, 4.36, 3.67]
    assert found["amed-teacher-dpm2"] == [18.49, 11.60, 11.64, 9.23]
    assert found["plugin-ipndm"] == [10.81, 6.61, 3.65, 2.63]
    assert found["plugin-dpmpp-logsnr"] == [25.95, 7.68, 4.51, 3.03]
    ffhq = [predictor(amed / "ffhq64" / f"plugin-ipndm{end}.yaml") for end in ("", "-time")]
    assert [e.value for spec in ffhq for e in spec.published] == [26.87, 12.49, 6.64, 4.24]
    shifted = load(SweepSpec, amed / "imagenet64" / "table2b.yaml").published
    assert [e.value for e in shifted if "shifted" in e.note] == [249.4, 89.63, 37.65, 16.76]


def test_no_two_presets_are_the_same_experiment_or_share_a_name():
    specs = [experiment(path) for path in PAPERS]
    assert len({spec.name for spec in specs}) == len(specs)
    assert len({spec.identity(spec.data.path) for spec in specs}) == len(specs)


def test_the_table_of_presets_is_up_to_date():
    assert TABLE.README.read_text() == TABLE.table(), "run: python pipelines/preset_table.py"


def test_every_file_says_what_it_is():
    assert [path for path in FILES if not TABLE.sentence(path)] == []


def test_the_recipes_of_the_papers_as_numbers():
    # FDM, appendix A.1, and its released commands: steps of the warm-up, and the multiplier.
    steps = {"cifar10": (200, 400, 400), "ffhq64": (800, 400, 400), "afhqv2-64": (400, 400, 400)}
    multipliers = {"cifar10": (2, 2, 1), "ffhq64": (1, 1, 1), "afhqv2-64": (2, 2, 1)}
    for dataset, batch, rate in (
        ("cifar10", 512, 1e-3),
        ("ffhq64", 256, 2e-4),
        ("afhqv2-64", 256, 2e-4),
    ):
        for at, process in enumerate(("edm", "vp", "ve")):
            spec = experiment(PRESETS / "fdm" / dataset / f"{process}-fdm.yaml")
            (fdm,) = spec.strategies
            assert (spec.training.global_batch, spec.training.optimizer.lr) == (batch, rate)
            assert spec.process.kind == process
            assert spec.network.kind == ("ncsnpp" if process == "ve" else "ddpmpp")
            assert fdm.multiplier == multipliers[dataset][at]  # type: ignore[union-attr]
            assert fdm.warmup.window == steps[dataset][at] * batch  # type: ignore[union-attr]
    # SpeeD, table 8: batch 256, AdamW at 1e-4, and 50K, 100K, 400K steps.
    for dataset, thousands in (("metfaces", 50), ("ffhq", 100), ("imagenet", 400)):
        training = experiment(PRESETS / "speed" / dataset / "dit-xl-speed-paper.yaml").training
        assert training.images == thousands * 1000 * 256
        assert (training.global_batch, training.optimizer.kind) == (256, "adamw")
        assert (training.optimizer.lr, training.optimizer.weight_decay) == (1e-4, 0)


def test_published_numbers_are_those_of_the_tables():
    edm_fdm = experiment(PRESETS / "fdm" / "cifar10" / "edm-fdm.yaml").published
    found = [(entry.images, entry.value) for entry in edm_fdm if entry.where == "Tables 2 and 5"]
    assert found == [(50e6, 2.17), (100e6, 1.93), (150e6, 1.83), (200e6, 1.79)]
    speed = experiment(PRESETS / "speed" / "metfaces" / "dit-xl-speed-paper.yaml").published
    assert [entry.value for entry in speed] == [367.3, 23.4, 22.6, 22.1, 21.1, 21.13]
    baseline, paper = (
        {
            entry.iterations: entry.value
            for entry in experiment(PRESETS / "speed" / "ffhq" / f"{stem}.yaml").published
            if "13" in entry.where
        }
        for stem in ("dit-xl", "dit-xl-speed-paper")
    )
    assert list(baseline) == list(paper) == [10_000 * n for n in range(1, 11)]
    assert [*baseline.values()] == [356.1, 335.3, 165.2, 35.8, 12.9, 11.9, 10.5, 9.6, 8.7, 7.8]
    assert [*paper.values()] == [322.1, 320.0, 91.8, 19.8, 9.9, 7.6, 7.1, 6.6, 6.2, 5.8]
    doubtful = experiment(PRESETS / "speed" / "ffhq" / "dit-xl-logit-normal.yaml").published
    assert sum("unreliable" in entry.note for entry in doubtful) == 4


def test_rows_that_two_tables_share_name_both():
    for dataset, stems, tables in (
        ("fdm/cifar10", ("edm", "edm-fdm"), "Tables 2 and 5"),
        ("fdm/cifar10", ("vp", "vp-fdm"), "Tables 2 and 6"),
        ("speed/ffhq", ("dit-xl", *(f"dit-xl-speed-{v}" for v in SPEEDS)), "Tables 2 and 13"),
    ):
        for stem in stems:
            found = [e.where for e in experiment(PRESETS / dataset / f"{stem}.yaml").published]
            assert found.count(tables) == (5 if dataset == "speed/ffhq" else 4), stem
            assert "Table 2" not in found, stem
    for variant in SPEEDS:
        found = experiment(PRESETS / "speed" / "ffhq" / f"dit-xl-speed-{variant}.yaml").published
        assert [e.where for e in found if e.value == 5.8] == ["Tables 10, 12 and 13"]


def test_steps_of_guided_sampling_are_not_passed_off_as_network_calls():
    guided = [spec for path in PAPERS if (spec := experiment(path)).grid.guidance is not None]
    imagenet = [spec for spec in guided if spec.name.startswith("imagenet")]
    assert len(imagenet) == 11
    assert [e.text for spec in guided for e in spec.published if e.nfe is not None] == []
    for spec in imagenet:
        assert all("250 steps; the guidance of Table 3" in entry.note for entry in spec.published)


def test_dits_decay_is_the_same_in_batches_of_any_size():
    batches = set()
    for path in PRESETS.glob("speed/*/*.yaml"):
        spec = experiment(path)
        if path.parent.name == "cifar10":
            continue
        training = spec.training
        batches.add(training.global_batch)
        decay = ema_beta(training.ema["ema"], training.images, 0, training.global_batch)
        assert decay == pytest.approx(0.9999, rel=1e-9), path
    assert batches == {255, 256}


@pytest.mark.parametrize("path", PAPERS, ids=name)
def test_two_steps_at_shrunken_width(path: Path, tmp_path: Path):
    spec = shrunken(path)
    losses: list[float] = []
    expects = spec.data.expects
    assert expects is not None
    shape = (expects.channels, expects.resolution, expects.resolution)
    network = network_of(spec, shape, expects.classes)
    before = [weight.clone() for weight in network.parameters()]
    job = job_of(spec, network, Pictures(shape, expects.classes), tmp_path, losses)
    assert train(job).images_seen == 2 * BATCH
    after = list(network.parameters())
    assert np.isfinite(losses).all()
    assert len(losses) == 2
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert all(torch.isfinite(weight).all() for weight in after)


def shrunken(path: Path) -> Experiment:
    """The preset with a tiny network, a tiny batch and two steps; its method stays as it is."""
    whole = experiment(path)
    network: dict[str, Any] = whole.network.model_dump(mode="json")
    if network["kind"] == "dit":
        network |= {"depth": 2, "width": 16, "heads": 2}
    else:
        network |= {"channels": 4, "blocks": 1}
    assert whole.data.expects is not None
    side = min(whole.data.expects.resolution, 32)
    small = experiment(
        path,
        f"network={network}",
        f"data.expects.resolution={side}",
        f"training.global_batch={BATCH}",
        f"training.images={2 * BATCH}",
        "training.lr_ramp=0",
        "training.log_every=1",
        "training.checkpoint_every=100%",
        "training.snapshot_every=100%",
        "cluster={workers: 1}",
    )
    assert (small.process, small.strategies) == (whole.process, whole.strategies)
    assert small.data.augment == whole.data.augment
    assert small.training.label_dropout == whole.training.label_dropout
    return small


class Pictures:
    """An endless stream of pictures of the shape and classes that a preset expects."""

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        self.shape, self.classes = shape, classes

    def batch(self, first: int, count: int) -> Batch:
        bits = rng.bits(0, "picture", first, count, self.shape) % np.uint64(256)
        positions = np.arange(first, first + count)
        labels = positions % self.classes if self.classes else np.full(count, -1)
        return Batch(bits.astype(np.uint8), labels.astype(np.int64), first)


def job_of(
    spec: Experiment, network: nn.Module, stream: Pictures, root: Path, losses: list[float]
) -> Job:
    """The plain loop on one process, from the pieces that a worker of a cluster builds."""
    training, plan = spec.training, BatchPlan(1, BATCH, BATCH, 1)
    engine = TorchEngine(network, training.optimizer, plan)

    def log(_: int, metrics: Mapping[str, float]) -> None:
        losses.append(metrics["train/loss"])

    return Job(
        training=training,
        plan=plan,
        engine=engine,
        objective=objective_of(spec),
        stream=stream,
        augmentation=Augmentation(spec.data.augment) if spec.data.augment else None,
        ema=EmaTracks(
            training.ema, budget=training.images, global_batch=BATCH, owned=engine.owned()
        ),
        store=CheckpointStore(root / "checkpoints"),
        snapshots=root / "snapshots",
        facts=RunFacts(identity="i", dataset="d", config={"name": spec.name}),
        callbacks=Callbacks(log=log),
    )


def test_a_preset_for_latents_cannot_be_trained_yet():
    with pytest.raises(ConfigError, match="latents of a VAE, which this version cannot pack yet"):
        load(Experiment, PRESETS / "speed" / "metfaces" / "dit-xl.yaml")

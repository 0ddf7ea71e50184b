"""The command line: exit codes, output for people and for machines, early refusals."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.main import get_command

from fleetstep.cli import app
from fleetstep.config.solver_text import parse_solver
from fleetstep.errors import ResumeError
from fleetstep.sampling.catalogue import catalogue
from fleetstep.sampling.spec import (
    ALIASES,
    PREDICTOR_FACTS,
    PREDICTOR_WEIGHTS,
    EulerSpec,
    PolynomialSpec,
    PredictorFacts,
)

PRESETS = Path(__file__).parents[2] / "pipelines" / "presets"
Run = Callable[..., tuple[int, str, str]]


def test_pack_verify_and_a_damaged_shard(run: Run, tmp_path: Path):
    out = tmp_path / "digits"
    code, text, _ = run("data", "pack", "digits", "--out", out, "--json")
    assert code == 0
    assert json.loads(text)["samples"] == {"heldout": 297, "train": 1500}
    assert run("data", "verify", out)[0] == 0
    code, _, err = run("data", "pack", "digits", "--out", out)
    assert code == 2
    assert "exists already" in err
    shard = sorted(out.glob("train-*.tar"))[0]
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(bytes(content))
    code, text, _ = run("data", "verify", out)
    assert code == 1
    assert shard.name in text


def test_pack_npz_and_its_labels(run: Run, tmp_path: Path):
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(40) % 4)
    code, text, _ = run(
        "data", "pack", "npz", tmp_path / "a.npz", "--out", tmp_path / "a", "--heldout", 0.25
    )
    assert code == 0
    assert "train 30" in text
    assert "heldout 10" in text


def test_a_dry_run_prints_the_plan_and_starts_nothing(run: Run, digits_path: Path, tmp_path: Path):
    preset = PRESETS / "digits-edm-fdm-speed.yaml"
    where = (f"data.path={digits_path}", f"storage={tmp_path / 'runs'}")
    code, text, _ = run("train", preset, *where, "--dry-run")
    assert code == 0
    assert "750 steps of 128 images" in text
    assert "2 worker(s) x 64 images x 1 accumulation" in text
    assert "30.0 % of the law's mass lies beyond the threshold" in text
    assert "its share of the draws falls to 7.9 %" in text
    assert not (tmp_path / "runs").exists()
    code, text, _ = run("train", preset, *where, "--dry-run", "--json", "training.micro_batch=16")
    plan = json.loads(text)
    assert code == 0
    assert (plan["micro_batch"], plan["accumulation"], plan["samples"]) == (16, 4, 1500)


def test_a_nearly_inert_threshold_and_a_ramp_longer_than_the_run_are_warned_of(
    run: Run, digits_path: Path
):
    code, text, _ = run(
        "train",
        PRESETS / "digits-edm-fdm-speed.yaml",
        f"data.path={digits_path}",
        "strategies.1.threshold={kind: magnitude}",
        "training.lr_ramp=10000000",
        "--dry-run",
    )
    assert code == 0
    assert "0.67 % of the law" in text
    assert text.count("warning:") == 2


def test_every_problem_is_printed_and_the_exit_code_is_2(run: Run):
    code, out, err = run("train", PRESETS / "digits-edm.yaml", "data.path=nowhere", "nam=x")
    assert code == 2
    assert out == ""
    assert "2 problems" in err
    assert "did you mean 'name'?" in err
    assert "Traceback" not in err


def test_a_failure_while_working_exits_with_1(run: Run, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("not one of ours")

    monkeypatch.setattr("fleetstep.data.stream.verify", fail)
    with pytest.raises(RuntimeError, match="not one of ours"):
        run("data", "verify", "x")
    # An error of ours carries its own code: refusals are 2, failures 1.
    assert ResumeError("x").exit_code == 2


def test_sampling_refuses_what_it_cannot_do_with_the_neighbours(run: Run, tmp_path: Path):
    code, _, err = run("sample", tmp_path, "--solver", "heun", "--nfe", 8)
    assert code == 2
    assert "nfe=7 or nfe=9" in err
    code, _, err = run("sample", tmp_path, "--solver", "hoin")
    assert code == 2
    assert "heun" in err
    code, _, err = run("sample", tmp_path, "--seeds", "9-3")
    assert code == 2
    assert "first-last" in err


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            ("--solver", "{kind: ipndm, ordr: 3}"),
            "solver.ordr: unknown key; did you mean 'order'?",
        ),
        (("--solver", "{kind: dpmpp_2m, order: 9}"), "solver.order = 9"),
        (("--solver", "{kind"), "is not YAML"),
        (("--solver", "euler", "--schedule", "poly"), "solver.schedule.kind: 'poly'"),
        (("--solver", "heun", "--denoise-to-zero"), "already ends at sigma = 0"),
        (("--solver", "rk45", "--nfe", 35), "chooses its own number of network calls"),
        (("--solver", "rk45", "--afs"), "leave out schedule and afs"),
        (("--solver", "heun_ab"), "nfe=34 or nfe=36"),
        (("--solver", "amed:nowhere"), "nowhere holds no predictor"),
        (("--solver", "pndm", "--nfe", 5), "nfe=12"),
    ],
)
def test_a_solver_that_cannot_be_is_refused_in_one_line(
    run: Run, tmp_path: Path, options: tuple[object, ...], problem: str
):
    code, out, err = run("sample", tmp_path, *options)
    assert code == 2
    assert problem in err
    assert out == ""
    assert "Traceback" not in err


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, digits_path: Path) -> Path:
    from small_run import write_small_run

    return write_small_run(tmp_path_factory.mktemp("runs"), digits_path)


def test_a_solver_is_written_as_a_kind_with_options_or_as_settings(
    run: Run, small: Path, tmp_path: Path
):
    drawn = []
    for solver in (
        ("--solver", "ipndm", "--schedule", "logsnr", "--afs", "--denoise-to-zero"),
        (
            "--solver",
            '{"kind": "ipndm", "afs": true, "denoise_to_zero": true, '
            '"schedule": {"kind": "logsnr"}}',
        ),
    ):
        code, text, _ = run(
            "sample", small, *solver, "--nfe", 5, "--seeds", "0-3", "--json",
            "--npz", tmp_path / "a.npz", "--out", tmp_path / "g.png",
        )  # fmt: skip
        assert code == 0
        answer = json.loads(text)
        assert (answer["nfe"], answer["schedule"]) == (5, "logsnr")
        assert "afs=True" in answer["solver"]
        with np.load(tmp_path / "a.npz") as arrays:
            drawn.append(arrays["images"])
    assert np.array_equal(*drawn)


def test_an_adaptive_solver_says_what_it_counted(run: Run, small: Path, tmp_path: Path):
    tolerant = "{kind: rk45, rtol: 0.1, atol: 0.1}"
    code, text, _ = run(
        "sample", small, "--solver", tolerant, "--seeds", "0-3", "--out", tmp_path / "g.png"
    )
    assert code == 0
    assert "rk45 carries a batch as one system" in text
    calls = int(text.split("(adaptive), ")[1].split(" network calls each")[0])
    assert calls % 6 == 2


def test_levels_of_the_users_own_set_the_number_of_calls(run: Run, small: Path, tmp_path: Path):
    levels = "{kind: levels, sigmas: [60, 5, 0.4, 0.02]}"
    drawing = ("sample", small, "--solver", "euler", "--schedule", levels, "--seeds", "0-1")
    code, text, _ = run(*drawing, "--out", tmp_path / "g.png")
    assert code == 0
    assert "3 network calls each" in text
    code, _, err = run(*drawing, "--nfe", 4)
    assert code == 2
    assert "nearest that works: nfe=3" in err


def test_a_predictor_of_another_snapshot_is_refused(run: Run, small: Path, tmp_path: Path):
    facts = PredictorFacts(
        student=EulerSpec(),
        schedule=PolynomialSpec(),
        levels=(80.0, 10.0, 0.002),
        afs=False,
        scale_dir=0.01,
        scale_time=0.0,
        snapshot="a" * 64,
        track="ema",
        run="other",
        images_seen=12_800,
        weights_sha256="0" * 64,
    ).sealed()
    (tmp_path / PREDICTOR_FACTS).write_text(facts.model_dump_json())
    code, _, err = run(
        "sample", small, "--solver", f"amed:{tmp_path}", "--out", tmp_path / "g.png"
    )
    assert code == 2
    assert "was trained for other at 12,800 images" in err
    code, _, err = run("sample", small, "--solver", f"amed:{tmp_path}", "--nfe", 7)
    assert code == 2
    assert "makes 4 network calls, not 7" in err


def write_predictor(folder: Path, source: Path, *, afs: bool = True) -> Path:
    """An untrained predictor for the run in `source`."""
    from fleetstep.orchestration.snapshots import find_snapshots
    from fleetstep.sampling.amed.files import save_predictor
    from fleetstep.sampling.amed.predictor import AmedPredictor

    (snapshot,) = find_snapshots([str(source)], which="last", track="ema")
    facts = PredictorFacts(
        student=EulerSpec(),
        schedule=PolynomialSpec(),
        levels=(80.0, 10.0, 1.0, 0.002),
        afs=afs,
        scale_dir=0.01,
        scale_time=0.0,
        snapshot=snapshot.digest,
        track="ema",
        run=snapshot.run,
        images_seen=snapshot.images_seen,
        weights_sha256="",
    )
    save_predictor(folder, AmedPredictor(0.01, 0.0, seed=0, dtype=torch.float64), facts)
    return folder


@pytest.mark.parametrize("afs", [True, False])
def test_a_predictor_samples_the_snapshot_it_was_trained_for(
    run: Run, small: Path, tmp_path: Path, afs: bool
):
    from fleetstep.orchestration.snapshots import find_snapshots, load_denoiser
    from fleetstep.sampling.first_calls import FirstCalls
    from fleetstep.sampling.generate import generate

    (snapshot,) = find_snapshots([str(small)], which="last", track="ema")
    write_predictor(tmp_path / "p", small, afs=afs)
    solver, nfe = f"amed:{tmp_path / 'p'}", 6 - afs
    files = []
    for seeds in ("0-5", "2-3"):
        npz = tmp_path / f"{seeds}.npz"
        code, text, _ = run(
            "sample", small, "--solver", solver, "--seeds", seeds, "--npz", npz, "--json",
            "--out", tmp_path / "g.png",
        )  # fmt: skip
        assert code == 0
        answer = json.loads(text)
        assert (answer["nfe"], answer["schedule"]) == (nfe, "polynomial(rho=7)")
        with np.load(npz) as arrays:
            files.append(arrays["images"])
    assert np.abs(files[0][2:4].astype(int) - files[1]).max() <= 1  # another batch shape

    denoiser = load_denoiser(snapshot, "ema", device=torch.device("cpu"))
    calls = FirstCalls()
    alone, first, second = (
        generate(
            denoiser, parse_solver(solver), nfe, count=4, shape=snapshot.shape, classes=10,
            first_calls=shared, unquantised=True,
        )
        for shared in (None, calls, calls)
    )  # fmt: skip
    assert np.array_equal(alone.unquantised, first.unquantised)
    assert np.array_equal(alone.unquantised, second.unquantised)
    # With AFS there is no first call to share.
    assert (first.calls_made, second.calls_made) == (nfe, nfe if afs else nfe - 1)


def test_solvers_are_listed_with_their_facts(run: Run):
    code, text, _ = run("solvers", "--json")
    assert code == 0
    listed = {entry["kind"]: entry for entry in json.loads(text)}
    assert listed["heun"]["nfe"] == [3, 5, 7, 9]
    assert listed["heun"]["evaluations"] == listed["edm_ablation"]["evaluations"] == 2
    assert listed["pndm"]["nfe"][0] == 12
    assert listed["deis"]["schedule"] == "time_uniform(rho=2)"
    assert listed["ddpm"]["nature"] == "stochastic"
    assert (listed["rk45"]["order"], listed["rk45"]["nature"]) == (None, "adaptive")
    assert listed["amed"]["settings"] == ["predictor"]
    assert listed["dpmpp"]["aliases"] == ["dpmpp_2m", "dpmpp_3m", "dpm_solver"]
    for entry in listed.values():
        for nfe in entry["nfe"]:
            assert parse_solver(entry["kind"]).points_for(nfe)
    code, text, _ = run("solvers")
    assert code == 0
    assert all(kind in text for kind in listed)


def test_the_help_of_sample_names_every_solver():
    (solver,) = (p for p in get_command(app).commands["sample"].params if p.name == "solver")
    words = set(re.findall(r"\w+", solver.help))
    assert {entry.kind for entry in catalogue()} | set(ALIASES) <= words


def test_a_dry_run_of_a_sweep_tells_cells_of_one_kind_apart(run: Run, small: Path, tmp_path: Path):
    solvers = (
        "[{kind: heun}, {kind: rk45}, {kind: ipndm}, {kind: ipndm, schedule: {kind: logsnr}}, "
        "{kind: ipndm, afs: true}]"
    )
    given = (f"runs=[{small}]", f"storage={tmp_path}", "nfe=[4, 5]", f"solvers={solvers}")
    code, text, _ = run("sweep", PRESETS / "digits-sweep.yaml", *given, "--dry-run")
    assert code == 0
    assert "8 cells x 1,000 images = 152,000 network calls" in text
    assert "1 cells of an adaptive solver taken as 120 an image" in text
    assert "skipped heun at 4 calls" in text
    for cell in (
        "heun, 5 calls",
        "rk45(rtol=1e-05, atol=1e-05, variable=log_sigma), its own calls",
        "ipndm(order=4), 4 calls",
        "ipndm(order=4) on logsnr, 5 calls",
        "ipndm(order=4, afs=True), 5 calls",
    ):
        assert f"  {cell}, small at 3,200 images" in text


@pytest.mark.parametrize("dry", [("--dry-run",), ()], ids=["dry run", "run"])
@pytest.mark.parametrize(
    ("file", "problem"), [(PREDICTOR_FACTS, "was changed"), (PREDICTOR_WEIGHTS, "is damaged")]
)
def test_a_sweep_refuses_a_damaged_predictor_before_it_starts(
    run: Run,
    small: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    problem: str,
    dry: tuple[str, ...],
):
    from fleetstep.orchestration import sweep_job

    monkeypatch.setattr(sweep_job, "connect", lambda *_: pytest.fail("Ray was started"))
    folder = write_predictor(tmp_path / "p", small)
    content = (folder / file).read_bytes()
    changed = content.replace(b"0.002", b"0.003")
    (folder / file).write_bytes(changed if changed != content else content[:-1] + b"?")
    solver = f"solvers=[{{kind: amed, predictor: {folder}}}]"
    given = (f"runs=[{small}]", f"storage={tmp_path}", solver)
    code, _, err = run("sweep", PRESETS / "digits-sweep.yaml", *given, *dry)
    assert code == 2
    assert f"{folder / file} {problem}" in err


@pytest.mark.parametrize(
    ("verb", "out"),
    [
        (("certify", "--quick", "--solver", "rk45"), "file"),
        (("certify", "--quick", "--solver", "rk45"), "file/folder"),
        (("trajectory", "SMALL", "--samples", 2), "file"),
        (("sample", "SMALL", "--seeds", "0-1"), "file/x.png"),
        (("sample", "SMALL", "--seeds", "0-1"), "."),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_where_nothing_can_be_written_is_refused_before_the_work(
    run: Run,
    small: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    verb: tuple[object, ...],
    out: str,
):
    from fleetstep.orchestration import certify, sample, trajectory_report

    for module, work in (
        (certify, "_progress"), (sample, "load_denoiser"), (trajectory_report, "load_denoiser")
    ):  # fmt: skip
        monkeypatch.setattr(module, work, lambda *_, **__: pytest.fail("work was begun"))
    (tmp_path / "file").write_text("in the way")
    words = [small if word == "SMALL" else word for word in verb]
    code, _, err = run(*words, "--out", tmp_path / out)
    assert code == 2
    assert "--out: " in err
    assert ("is a file)" if "file" in out else "is a folder") in err
    assert (tmp_path / "file").read_text() == "in the way"
    assert not list(tmp_path.rglob("*.json"))


def test_arrays_in_the_place_of_a_folder_are_refused(run: Run, small: Path, tmp_path: Path):
    where = ("--out", tmp_path / "g.png", "--npz", tmp_path)
    code, _, err = run("sample", small, "--seeds", "0-1", *where)
    assert code == 2
    assert f"--npz: {tmp_path} is a folder" in err


def test_a_sample_depends_on_its_seed_alone(run: Run, digits_path: Path, tmp_path: Path):
    from small_run import write_small_run

    folder = write_small_run(tmp_path / "runs", digits_path)
    files = []
    for seeds in ("0-9", "3-5"):
        npz = tmp_path / f"{seeds}.npz"
        code, _, _ = run(
            "sample",
            folder,
            "--nfe",
            5,
            "--seeds",
            seeds,
            "--npz",
            npz,
            "--out",
            tmp_path / "g.png",
        )
        assert code == 0
        with np.load(npz) as arrays:
            files.append((arrays["images"], arrays["labels"]))
    (ten, ten_labels), (three, three_labels) = files
    assert np.array_equal(ten[3:6], three)
    assert np.array_equal(ten_labels[3:6], three_labels)


def test_help_names_every_verb_and_no_stub(run: Run):
    code, text, _ = run("--help")
    assert code == 0
    for verb in "data train tune sample solvers sweep compare export doctor".split():
        assert f"│ {verb} " in text
    assert "│ plan " not in text


def test_compare_without_runs_says_what_to_do(run: Run, tmp_path: Path):
    code, _, err = run("compare", "--storage", tmp_path / "none", "--out", tmp_path / "out")
    assert code != 0
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_ctrl_c_says_how_to_go_on_and_exits_with_130(run: Run, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fleetstep.data.stream.verify", interrupt)
    code, _, err = run("data", "verify", "x")
    assert code == 130
    assert "the same command goes on" in err


def test_a_usage_error_exits_with_2(run: Run):
    assert run("train", "--no-such-option")[0] == 2


def test_a_sweeps_dry_run_prints_its_configuration(run: Run, digits_path: Path, tmp_path: Path):
    from small_run import write_small_run

    folder = write_small_run(tmp_path / "runs", digits_path)
    code, text, _ = run(
        "sweep",
        PRESETS / "digits-sweep.yaml",
        f"runs=[{folder}]",
        f"storage={tmp_path / 'runs'}",
        "--dry-run",
    )
    assert code == 0
    assert "reference_split: train" in text
    assert "cells x" in text

"""The command line: exit codes, output for people and for machines, early refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fleetstep.errors import ResumeError

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
    for verb in ("data", "train", "sample", "sweep", "compare", "doctor"):
        assert verb in text
    for later in ("tune", "export", "plan"):
        assert f"│ {later} " not in text


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

"""A predictor's training as a configuration: everything wrong is said at once, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fleetstep.config import AmedExperiment, dump, flatten, load
from fleetstep.errors import ConfigError
from small_run import write_small_run

POINTS = ("name=p", "training.points=4")


def spec(run: Path | str, *overrides: str, required: bool = False) -> AmedExperiment:
    return load(AmedExperiment, None, [f"run={run}", *POINTS, *overrides], data_required=required)


def problems(run: Path | str, *overrides: str, required: bool = False) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        spec(run, *overrides, required=required)
    return caught.value.problems


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, digits_path: Path) -> Path:
    return write_small_run(tmp_path_factory.mktemp("runs"), digits_path)


def snapshot_of(tmp_path: Path, **facts: object) -> Path:
    """A snapshot folder as far as a configuration reads it."""
    folder = tmp_path / "network"
    folder.mkdir()
    known = {"tracks": {"ema": {}}, "config": {"process": {"kind": "edm"}}}
    (folder / "snapshot.json").write_text(json.dumps(known | facts))
    return folder


def test_every_problem_is_named_at_once_and_torch_is_not_loaded(tmp_path: Path):
    folder = snapshot_of(tmp_path, classes=0)
    script = (
        "import sys\n"
        "from fleetstep.config import AmedExperiment, load\n"
        "from fleetstep.errors import ConfigError\n"
        "try:\n"
        f"    load(AmedExperiment, None, ['name=p', 'run={folder}', 'track=fast',"
        " 'training={points: 4, batch: 9, guidance: {scale: 2}, student: {kind: ipndm},"
        " intermediate: 1}', 'cluster.workers=2', 'tracking.uri=plain', 'storage=s3://x',"
        " 'a=1'])\n"
        "except ConfigError as error:\n"
        "    print(*error.problems, sep='\\n')\n"
        "print([m for m in ('torch', 'ray', 'mlflow') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    *lines, loaded = done.stdout.splitlines()
    fields = [line.split(":")[0] for line in lines]
    assert fields == [
        "a",
        "training.batch",
        "training.intermediate",
        "track",
        "training.guidance",
        "tracking.uri",
        "storage",
    ]
    assert loaded == "[]"


@pytest.mark.parametrize(
    ("workers", "batch", "nearest"), [(2, 9, "8 or 10"), (3, 128, "126 or 129"), (8, 8, "16")]
)
def test_a_batch_is_shared_equally(workers: int, batch: int, nearest: str):
    (line,) = problems("nowhere", f"cluster.workers={workers}", f"training.batch={batch}")
    assert line.startswith(f"training.batch: {batch} latents")
    assert line.endswith(f"nearest that works: {nearest}")
    assert spec("nowhere", f"cluster.workers={workers}", f"training.batch={nearest[-3:].strip()}")


def test_an_unreachable_number_of_calls_names_its_neighbours():
    (line,) = problems("nowhere", "training.points=null", "training.nfe=6")
    assert "cannot make exactly 6 network calls" in line
    assert "5 or 7" in line
    assert spec("nowhere", "training.points=null", "training.nfe=7").training.chosen_points == 5
    even = spec("nowhere", "training.points=null", "training.nfe=6", "training.afs=false")
    assert even.training.chosen_points == 4


@pytest.mark.parametrize("student", ["ipndm", "euler", "dpmpp"])
def test_a_teacher_is_finer_than_its_student(student: str):
    (line,) = problems(
        "nowhere", f"training.student={{kind: {student}}}", "training.intermediate=1"
    )
    assert line.startswith("training.intermediate: the teacher")
    assert spec("nowhere", f"training.student={{kind: {student}}}", "training.intermediate=2")


def test_a_schedule_that_ends_at_zero_is_no_training_grid():
    (line,) = problems("nowhere", "training.schedule={kind: levels, sigmas: [80, 1, 0]}")
    assert "no finer grid for the teacher" in line


def test_guidance_needs_a_network_with_classes(tmp_path: Path, run_folder: Path):
    unconditional = snapshot_of(tmp_path, classes=0)
    (line,) = problems(unconditional, "training.guidance={scale: 1.5}")
    assert "unconditional" in line
    # The digits have ten classes, which this older snapshot does not say.
    assert spec(run_folder, "training.guidance={scale: 1.5}").training.chosen_nfe == 10


def test_levels_that_samplers_do_not_walk_are_refused(tmp_path: Path):
    process = {"kind": "edm", "sigma_min": 100.0, "sigma_max": 200.0}
    folder = snapshot_of(tmp_path, config={"process": process})
    (line,) = problems(folder)
    assert line.startswith("run: the noise levels 100 .. 200")


def test_a_network_that_is_not_there_is_a_problem_of_training_alone(run_folder: Path):
    assert spec("runs/nowhere").run == "runs/nowhere"
    (line,) = problems("runs/nowhere", required=True)
    assert line.startswith("run: runs/nowhere is neither a run folder")
    assert "fleetstep import edm" in line
    assert spec(run_folder, required=True)
    (snapshot,) = (run_folder / "snapshots").iterdir()
    assert spec(snapshot, required=True)


def test_identity_is_what_decides_the_numbers():
    one = spec("a")
    same = ("name=q", "storage=elsewhere", "training.images=20000", "cluster.workers=2")
    assert spec("a", *same).identity("x") == one.identity("x")
    assert spec("a", *same).execution() != one.execution()
    assert one.identity("x") != one.identity("y")
    for change in ("training.points=5", "training.seed=1", "track=other", "training.batch=64"):
        assert spec("a", change).identity("x") != one.identity("x"), change


def test_it_is_written_down_and_read_back(tmp_path: Path):
    one = spec("a", "training.student={kind: unipc}", "checkpoint_every=5%")
    (tmp_path / "it.yaml").write_text(dump(one))
    assert load(AmedExperiment, tmp_path / "it.yaml", data_required=False) == one
    assert flatten(one)["training.student.kind"] == "unipc"


@pytest.mark.parametrize(
    ("every", "loops"), [("10%", 7), ("256", 2), ("1", 1), ("100%", 78), ("1000000", 7812)]
)
def test_checkpoints_come_every_so_many_loops(every: str, loops: int):
    assert spec("a", f"checkpoint_every={every}").checkpoint_loops == loops

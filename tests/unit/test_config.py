"""The configuration: closed, checked at once and completely, and the same after a round trip."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fleetstep.config import (
    AmedExperiment,
    Experiment,
    SweepSpec,
    dump,
    flatten,
    load,
    resolve_secrets,
)
from fleetstep.data.spec import DataSpec
from fleetstep.errors import ConfigError

ROOT = Path(__file__).parents[2]
PRESETS = sorted((ROOT / "pipelines" / "presets").glob("*.yaml"))


@pytest.fixture
def edm(digits_path) -> list[str]:
    return [f"data.path={digits_path}"]


def digits(*overrides: str, preset: str = "digits-edm") -> Experiment:
    return load(Experiment, ROOT / "pipelines" / "presets" / f"{preset}.yaml", overrides)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_every_preset_loads_and_survives_a_round_trip(preset, edm, tmp_path):
    tree = yaml.safe_load(preset.read_text())
    if "run" in tree:
        model, overrides = AmedExperiment, []
    else:
        model, overrides = (SweepSpec, []) if "solvers" in tree else (Experiment, edm)
    spec = load(model, preset, overrides, data_required=model is Experiment)
    again = tmp_path / "resolved.yaml"
    again.write_text(dump(spec))
    assert load(model, again, data_required=model is Experiment) == spec


def test_five_different_mistakes_are_reported_together(tmp_path, digits_path):
    file = tmp_path / "wrong.yaml"
    file.write_text(
        f"""
name: wrong
data: {{path: {digits_path}, windw: 100}}
strategies:
  - {{kind: speeed, k: 5}}
  - {{kind: speed, lam: 5}}
network: {{kind: ddpmpp, attention_resolutions: []}}
grid: {{solver: {{kind: heun}}, nfe: 16}}
training: {{images: 1000, global_batch: 500}}
cluster: {{workers: 3}}
"""
    )
    with pytest.raises(ConfigError) as caught:
        load(Experiment, file)
    text = str(caught.value)
    assert "data.windw: unknown key; did you mean 'window'?" in text
    assert "strategies.0.kind: 'speeed' is not a kind; valid kinds: warmup, fdm, speed" in text
    assert "did you mean 'speed'?" in text
    assert "strategies.1.lam = 5" in text
    assert "training.global_batch: global_batch 500 is not a multiple of 3 workers" in text
    assert "grid.nfe" in text
    assert "nfe=15 or nfe=17" in text
    assert len(caught.value.problems) == 5


def test_all_problems_are_found_without_torch(tmp_path):
    file = tmp_path / "wrong.yaml"
    file.write_text("name: x\ntraining: {imags: 3}\n")
    code = (
        "import sys\nfrom pathlib import Path\nfrom fleetstep.config import Experiment, load\n"
        "from fleetstep.errors import ConfigError\n"
        f"try: load(Experiment, Path({str(file)!r}))\nexcept ConfigError as e: "
        f"print(len(e.problems))\n"
        "assert 'torch' not in sys.modules and 'ray' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 3


def test_overrides_reach_lists_and_make_sections(edm):
    experiment = digits(
        *edm,
        "training.seed=7",
        "strategies.0.multiplier=2",
        "strategies.1.k=2",
        preset="digits-edm-fdm-speed",
    )
    assert experiment.training.seed == 7
    assert experiment.strategies[0].multiplier == 2
    assert experiment.strategies[1].k == 2
    with pytest.raises(ConfigError, match="not of the form"):
        digits(*edm, "training.seed")
    with pytest.raises(ConfigError, match="inside a section"):
        digits(*edm, "strategies.9.k=2")


def test_impossible_batches_name_the_nearest_that_works(edm):
    with pytest.raises(ConfigError) as caught:
        digits(*edm, "cluster.workers=3")
    assert "128" in str(caught.value)
    assert "3" in str(caught.value)
    assert "129" in str(caught.value) or "126" in str(caught.value)


def test_a_missing_dataset_says_how_to_make_one():
    with pytest.raises(ConfigError, match="fleetstep data pack"):
        digits("data.path=does/not/exist")


def test_conflicting_strategies_are_refused(edm):
    with pytest.raises(ConfigError, match=r"warm-?up"):
        digits(*edm, "strategies=[{kind: fdm}, {kind: warmup}]")


def test_identity_ignores_how_a_run_is_executed_and_nothing_else(edm):
    base = digits(*edm).identity("data")
    assert (
        digits(*edm, "cluster.workers=1", "storage=elsewhere", "training.micro_batch=32").identity(
            "data"
        )
        == base
    )
    assert digits(*edm, "training.seed=1").identity("data") != base
    assert digits(*edm, "training.global_batch=256").identity("data") != base
    assert digits(*edm, "strategies=[{kind: warmup}]").identity("data") != base
    assert digits(*edm).identity("other data") != base
    # The ramp is a share of the budget: a longer run would have another learning rate at the same
    # image.
    assert digits(*edm, "training.images=384000").identity("data") != base
    fixed = [*edm, "training.lr_ramp=1000", "training.ema={ema: {half_life: 1000}}"]
    assert digits(*fixed).identity("data") == digits(*fixed, "training.images=384000").identity(
        "data"
    )
    assert digits(*edm).execution() != digits(*edm, "cluster.workers=1").execution()


def test_secrets_are_resolved_late_and_only_where_allowed(edm, monkeypatch):
    monkeypatch.setenv("FS_TEST_PASSWORD", "hunter2")
    uri = "postgresql://user:${env:FS_TEST_PASSWORD}@host/db"
    experiment = digits(*edm, f"tracking.uri={uri}")
    assert "hunter2" not in dump(experiment)
    assert "hunter2" not in json.dumps(flatten(experiment))
    assert resolve_secrets(experiment.tracking.uri) == "postgresql://user:hunter2@host/db"
    with pytest.raises(ConfigError, match=r"name: \$\{env:NAME\} is for secrets"):
        digits(*edm, "name=${env:FS_TEST_PASSWORD}")
    with pytest.raises(ConfigError, match="FS_NOT_SET is not set"):
        resolve_secrets("${env:FS_NOT_SET}")
    assert "FS_NOT_SET" not in os.environ


def test_a_secret_in_plain_text_is_refused_and_not_repeated(edm):
    with pytest.raises(ConfigError, match="in plain text") as caught:
        digits(*edm, "tracking.uri=postgresql://user:hunter2@host/db")
    assert "hunter2" not in str(caught.value)


def test_flat_parameters_name_every_strategy(edm):
    flat = flatten(digits(*edm, preset="digits-edm-fdm-speed"))
    assert flat["strategies.0.kind"] == "fdm"
    assert flat["strategies.1.threshold.q"] == "0.7"
    assert flat["network.multipliers"] == "[1, 2]"


def test_a_config_error_crosses_processes():
    error = ConfigError(["a: wrong", "b: wrong"])
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert again.problems == error.problems
    assert again.exit_code == 2


def test_a_sweep_that_reaches_nothing_is_refused():
    with pytest.raises(ConfigError, match="no solver reaches"):
        load(SweepSpec, None, ["runs=[x]", "solvers=[{kind: heun}]", "nfe=[4, 8]"])


def test_solvers_whose_calls_cannot_be_chosen_need_no_reachable_number():
    for solver in ("{kind: rk45}", "{kind: euler, schedule: {kind: levels, sigmas: [9, 1]}}"):
        spec = load(SweepSpec, None, ["runs=[x]", f"solvers=[{solver}]", "nfe=[4]"])
        assert len(spec.solvers) == 1


@pytest.mark.parametrize(
    ("solvers", "twice"),
    [
        ("{kind: ipndm}, {kind: ipndm, order: 4}", True),
        ("{kind: dpmpp_2m}, {kind: dpmpp}", True),
        ("{kind: dpmpp}, {kind: dpmpp, schedule: {kind: logsnr}}", True),
        ("{kind: ipndm}, {kind: ipndm, schedule: {kind: logsnr}}", False),
        ("{kind: ipndm}, {kind: ipndm, afs: true}", False),
    ],
)
def test_a_solver_is_listed_once_whatever_it_is_called(solvers: str, twice: bool):
    overrides = ["runs=[x]", f"solvers=[{solvers}]"]
    if not twice:
        assert len(load(SweepSpec, None, overrides).solvers) == 2
        return
    with pytest.raises(ConfigError, match="is listed twice"):
        load(SweepSpec, None, overrides)


def test_a_mistake_under_an_alias_is_named_where_it_stands():
    with pytest.raises(ConfigError) as caught:
        load(SweepSpec, None, ["runs=[x]", "solvers=[{kind: dpmpp_2m, ordr: 3}]"])
    assert "solvers.0.ordr: unknown key; did you mean 'order'?" in caught.value.problems


def test_a_predictor_that_is_not_there_is_found_before_the_sweep(tmp_path):
    solver = f"solvers=[{{kind: amed, predictor: {tmp_path}/none}}]"
    with pytest.raises(ConfigError, match=r"solvers\.0: .*none holds no predictor"):
        load(SweepSpec, None, ["runs=[x]", solver])


@pytest.mark.parametrize(
    ("solver", "problem"),
    [
        ("{kind: rk45}", "chooses its own number of network calls"),
        ("{kind: amed, predictor: p}", "serves the snapshot it was trained for"),
    ],
)
def test_grids_are_drawn_with_solvers_of_known_cost_that_need_no_training(edm, solver, problem):
    with pytest.raises(ConfigError, match=rf"grid\.solver: .*{problem}"):
        digits(*edm, f"grid.solver={solver}")


def test_latents_are_not_thresholded():
    path = ROOT / "pipelines" / "presets" / "speed" / "ffhq" / "dit-xl.yaml"
    solver = "grid={solver: {kind: euler, thresholding: {}}, nfe: 5}"
    with pytest.raises(ConfigError, match=r"grid\.solver\.thresholding: .* 4 channels"):
        load(Experiment, path, [solver], data_required=False)


def test_a_typo_does_not_hide_an_impossible_batch_of_the_same_section(edm):
    with pytest.raises(ConfigError) as caught:
        digits(*edm, "training.micro_bach=3", "training.global_batch=127")
    assert len(caught.value.problems) == 2
    assert "training.micro_bach: unknown key; did you mean 'micro_batch'?" in str(caught.value)
    assert "127 is not a multiple of 2 workers" in str(caught.value)


def test_training_images_are_not_held_out(edm):
    with pytest.raises(ConfigError, match=r"data\.heldout: 'train' is the split"):
        digits(*edm, "data.heldout=train")


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("tracking.uri=./mlruns", r"tracking\.uri: must begin with one of sqlite"),
        ("tracking.uri=${env:FS_NOT_SET}", "FS_NOT_SET is not set"),
        ("storage=s3://bucket/runs", "storage: must be a local or mounted path"),
    ],
)
def test_addresses_are_checked_when_a_file_is_loaded(edm, override, problem):
    with pytest.raises(ConfigError, match=problem):
        digits(*edm, override)
    with pytest.raises(ConfigError, match=problem):
        load(SweepSpec, None, ["runs=[x]", override])


def test_home_is_expanded_wherever_a_path_is_read(edm, monkeypatch, tmp_path, digits_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "digits").symlink_to(digits_path)
    experiment = digits("data.path=~/digits", "storage=~/runs")
    assert experiment.data.path == str(tmp_path / "digits")
    assert experiment.storage == str(tmp_path / "runs")
    sweep = load(SweepSpec, None, ["runs=[~/runs/a]", "storage=~/runs"])
    assert (sweep.runs, sweep.storage) == ((f"{tmp_path}/runs/a",), f"{tmp_path}/runs")


def test_a_dataset_other_than_expected_is_refused_with_numbers(edm):
    fits = "data.expects={resolution: 8, channels: 1, classes: 10}"
    assert digits(*edm, fits).identity("data") == digits(*edm).identity("data")
    with pytest.raises(ConfigError) as caught:
        digits(*edm, "data.expects={resolution: 32, channels: 3, classes: 10}")
    assert "images of 3 x 32 x 32 in 10 classes" in str(caught.value)
    assert "holds images of 1 x 8 x 8 in 10 classes" in str(caught.value)


def test_a_published_number_decides_nothing_and_says_why_it_is_missing(edm):
    number = "published=[{paper: FDM, where: Table 2, value: 1.79, images: 200000000, nfe: 35}]"
    spec = digits(*edm, number)
    assert spec.published[0].text == "FDM Table 2: FID 1.79 (200 Mimg, NFE 35)"
    assert spec.identity("data") == digits(*edm).identity("data")
    assert spec.execution() == digits(*edm).execution()
    assert not any(key.startswith("published") for key in flatten(spec))
    missing = "published=[{paper: SpeeD, where: Table 3, value: null, note: %s}]"
    found = digits(*edm, missing % "not compared").published[0].text
    assert found == "SpeeD Table 3: not published; not compared"
    with pytest.raises(ConfigError, match="without a value needs a note"):
        digits(*edm, missing % "''")


@pytest.mark.parametrize(
    "override",
    [
        "data.augment=0.12",
        "data.flip=false",
        "training.label_dropout=0.1",
        "process.p_mean=-1.0",
        "process={kind: ve}",
        "network.dropout=0.1",
        "training.optimizer.kind=adamw",
        "training.ema.ema.half_life=1000",
    ],
)
def test_identity_holds_everything_that_decides_numbers(edm, override):
    assert digits(*edm, override).identity("data") != digits(*edm).identity("data")


@pytest.mark.parametrize(
    "override",
    ["training.compile=inductor", "training.activation_checkpointing=true", "grid.nfe=5"],
)
def test_identity_holds_nothing_else(edm, override):
    assert digits(*edm, override).identity("data") == digits(*edm).identity("data")


def test_augmentation_mirrors_by_itself():
    assert [DataSpec(path="x", augment=0.1).mirrors(allowed) for allowed in (True, False)] == [
        False,
        False,
    ]
    assert DataSpec(path="x").mirrors(True)


def test_images_are_not_mirrored_behind_the_back_of_augmentation(edm, digits_path):
    augmented = [*edm, "data.augment=0.12"]
    assert digits(*augmented, "data.flip=false").data.augment == 0.12
    with pytest.raises(ConfigError) as caught:
        digits(*augmented, "data.flip=true")
    (mirrored,) = (line for line in caught.value.problems if "augment" in line)
    assert mirrored.startswith("data.flip: true together with data.augment: 0.12")
    assert mirrored.endswith("use flip: null")


def test_a_network_that_cannot_be_told_of_augmentation_is_refused(edm):
    with pytest.raises(ConfigError, match=r"data\.augment: 0\.12, but network kind dit cannot"):
        digits(*edm, "network={kind: dit}", "data.augment=0.12")


DDPM = "process={kind: ddpm}"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["strategies=[{kind: speed, k: 0.5}]"], r"strategies\.0\.k = 0\.5: .*equal to 1"),
        (["strategies=[{kind: speed, lam: 0.4}]"], r"strategies\.0\.lam = 0\.4: .*equal to 0\.5"),
        (["strategies=[{kind: speed, lam: 5}]"], r"strategies\.0\.lam = 5: .*equal to 1"),
        (
            [DDPM, "strategies=[{kind: speed, threshold: {kind: steps, count: 0}}]"],
            r"strategies\.0\.threshold\.count = 0: .*greater than 0",
        ),
        (
            [DDPM, "strategies=[{kind: speed, threshold: {kind: steps, count: 1001}}]"],
            r"tau = 1001, and tau must lie in 1 \.\. T = 1000",
        ),
        (["strategies=[{kind: fdm, multiplier: -1}]"], r"strategies\.0\.multiplier = -1: .*to 0"),
        (
            [
                "process={kind: ve}",
                "strategies=[{kind: speed, threshold: {kind: magnitude, r: 1e9}}]",
            ],
            r"r = 1e\+09 .*sigma = 3\.162e\+04, outside the support of the ve law",
        ),
        (
            ["strategies=[{kind: speed, threshold: {kind: quantile, q: 1.5}}]"],
            r"threshold\.q = 1\.5: .*less than 1",
        ),
        (
            ["process={kind: ddpm, prediction: v}", "strategies=[{kind: p2}]"],
            r"p2\) weighs the loss of an eps-prediction, and process\.prediction is v",
        ),
        (
            [DDPM, "strategies=[{kind: ant_uw}]"],
            r"an equal share of the global batch, and 128 is not divisible by 5: use clusters 4",
        ),
        (
            ["process={kind: ve, sigma_min: 90, sigma_max: 100}", "strategies=[]"],
            r"process: the noise levels 90 \.\. 100 of ve do not meet .*or set grid\.samples to 0",
        ),
        (
            ["process={kind: edm, sigma_min: 5, sigma_max: 1}"],
            r"- process = \{.*\}: sigma_min must lie below sigma_max, got 5\.0 and 1\.0",
        ),
        (
            ["strategies=[{kind: warmup, start: 10, stop: 5}]"],
            r"- strategies\.0 = \{.*\}: the cap cannot shrink: .*raise stop",
        ),
    ],
)
def test_bad_input_is_refused_at_load_with_rule_and_value(edm, overrides, says):
    with pytest.raises(ConfigError, match=says):
        digits(*edm, *overrides)


def test_reconstructions_are_marked_in_the_tracker(edm):
    flat = flatten(digits(*edm, DDPM, "strategies=[{kind: min_snr}, {kind: clts}]"))
    assert flat["strategies.1.reconstruction"] == "true"
    assert "strategies.0.reconstruction" not in flat

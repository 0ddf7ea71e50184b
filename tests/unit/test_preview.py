"""What a dry run says: strategies in numbers, warnings, and a dataset that is not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fleetstep.cli import app
from fleetstep.config import Experiment, load
from fleetstep.orchestration.preview import preview_training

PRESETS = Path(__file__).parents[2] / "pipelines" / "presets"


def summary(preset: str, *overrides: str) -> str:
    spec = load(Experiment, PRESETS / f"{preset}.yaml", overrides, data_required=False)
    return preview_training(spec).summary()


@pytest.mark.parametrize(
    ("preset", "overrides", "says"),
    [
        ("fdm/cifar10/edm", [], "process edm, the network predicts F"),
        ("fdm/cifar10/vp-3x", [], "process vp (beta x 3), the network predicts eps"),
        (
            "speed/ffhq/dit-xl-cosine",
            [],
            "process ddpm (cosine, 1000 steps), the network predicts eps and the variance of each",
        ),
        (
            "fdm/ffhq64/edm-fdm",
            [],
            "fdm: c_in = exp(-m B)(1 + m B) with m = 1; loss weight capped at 5, growing to 500 "
            "over 204.8 kimg = 800 steps (0.10 % of the run)",
        ),
        ("fdm/cifar10/edm-fdm-no-warmup", [], "with m = 2; no warm-up"),
        (
            "speed/metfaces/dit-xl-speed-paper",
            [],
            "speed: threshold at step 700 of 1000; 30.0 % of the law's mass lies beyond the "
            "threshold; its share of the draws falls to 7.9 % (k = 5); change-aware weights in "
            "[0.4, 0.6]",
        ),
        (
            "speed/metfaces/dit-xl-speed-released",
            [],
            "(k = 5, before reflection); every second level is the reflection of the one before; "
            "change-aware weights in [0.4, 0.6], 1 beyond the threshold",
        ),
        ("speed/ffhq/dit-xl-quadratic-speed-paper", [], "threshold at step 872 of 1000"),
        ("speed/ffhq/dit-xl-cosine-speed-paper", [], "threshold at step 945 of 1000"),
        ("speed/ffhq/unet-k-1", [], "and keeps its share of the draws (k = 1)"),
        ("speed/cifar10/edm-speed", [], "threshold at sigma = 5.865; 0.67 % of"),
        ("speed/cifar10/edm-speed", [], "warning: SpeeD's asymmetric sampling is nearly inert"),
        ("speed/cifar10/edm-speed-quantile", [], "threshold at sigma = 0.5651 (quantile 0.7)"),
        (
            "speed/ffhq/dit-xl-clts",
            [],
            "clts (reconstruction): from uniform steps to N(0.3 T, (0.2 T)^2) over 12800 kimg = "
            "50000 steps",
        ),
        ("speed/ffhq/dit-xl-ant-uw", [], "ant_uw (reconstruction): 5 clusters of noise levels"),
        ("speed/ffhq/dit-xl-tskdif-cur", [], "tskdif_cur (reconstruction): noise levels in 20"),
        (
            "speed/cifar10/edm-guided",
            ["training.label_dropout=0"],
            "warning: grids are guided with scale 1.5, but no label is dropped in training",
        ),
        ("fdm/cifar10/edm", [], "augmentation: each change with probability 0.12"),
    ],
)
def test_a_preview_says_what_is_trained(preset: str, overrides: list[str], says: str):
    assert says in summary(preset, *overrides)


def test_a_preview_warns_of_nothing_that_is_right():
    for preset in ("fdm/cifar10/edm-fdm", "speed/cifar10/edm-guided", "speed/ffhq/dit-xl-p2"):
        assert "warning" not in summary(preset)


def test_a_dry_run_needs_no_dataset_and_says_so():
    preset = str(PRESETS / "fdm" / "ffhq64" / "edm.yaml")
    done = CliRunner().invoke(app, ["train", preset, "--dry-run"])
    assert done.exit_code == 0
    assert "data data/ffhq64 is NOT THERE" in done.stdout
    assert "fleetstep data pack images FOLDER --size 64 --channels 3 --out data/ffhq64" in (
        done.stdout
    )
    assert "FDM Table 2: FID 3.21 (50 Mimg, NFE 79, samples 50000)" in done.stdout
    plan = json.loads(CliRunner().invoke(app, ["train", preset, "--dry-run", "--json"]).stdout)
    assert (plan["samples"], plan["steps"], plan["snapshots"]) == (None, 781_250, 5)


def test_latents_are_said_to_be_out_of_reach():
    assert "latents of a VAE, which this version cannot pack yet" in summary("speed/ffhq/unet")

"""A trained predictor on disk: whole or refused, and a solver only for what it was trained for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from amed_problem import featured_mixture, fill
from contracts.exact_denoisers import golden_latents
from fleetstep.durable import sha256_of
from fleetstep.errors import SamplingError
from fleetstep.sampling.amed.files import load_predictor, save_predictor
from fleetstep.sampling.amed.predictor import AmedPredictor
from fleetstep.sampling.schedules import sigmas
from fleetstep.sampling.spec import (
    PREDICTOR_FACTS,
    PREDICTOR_WEIGHTS,
    AmedSpec,
    GuidanceSpec,
    IpndmSpec,
    PolynomialSpec,
    PredictorFacts,
    check_predictor,
    read_facts,
)
from fleetstep.sampling.spec.learned import seal_of
from fleetstep.sampling.trajectory import first_call_of, levels_for, sample

SCHEDULE = PolynomialSpec()
FACTS = PredictorFacts(
    student=IpndmSpec(),
    schedule=SCHEDULE,
    levels=tuple(sigmas(SCHEDULE, 4, 0.002, 80.0).tolist()),
    afs=True,
    scale_dir=0.01,
    scale_time=0.2,
    snapshot="5a" * 32,
    track="ema",
    run="digits-edm",
    images_seen=200_000,
    weights_sha256="",
    training={"lr": 0.005},
)


def predictor(*, standardised: bool = False, seed: int = 0) -> AmedPredictor:
    made = AmedPredictor(0.01, 0.2, seed=seed, standardised=standardised, dtype=torch.float64)
    if standardised:
        made.freeze_statistics(torch.arange(64).double(), torch.full((64,), 3.0).double())
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_predictor(tmp_path / "p", fill(predictor()), FACTS)
    return tmp_path / "p"


def rewrite(folder: Path, change: dict[str, Any], *, sealed: bool = False) -> None:
    """Change facts in the file; sealed again, they are those of another predictor."""
    file = folder / PREDICTOR_FACTS
    facts = json.loads(file.read_text()) | change
    file.write_text(json.dumps(facts | {"seal": seal_of(facts)} if sealed else facts))


def drawn(folder: Path, nfe: int = 5) -> torch.Tensor:
    solver, denoiser = AmedSpec(predictor=str(folder)), featured_mixture()
    return sample(denoiser, solver, levels_for(denoiser, solver, nfe), golden_latents()).x_BCHW


@pytest.mark.parametrize("standardised", [False, True])
def test_what_was_saved_is_loaded(tmp_path: Path, standardised: bool):
    saved = predictor(standardised=standardised, seed=7)
    facts = save_predictor(
        tmp_path, saved, FACTS.model_copy(update={"standardised": standardised})
    )
    loaded, read = load_predictor(tmp_path)
    assert read == facts == read_facts(tmp_path)
    assert facts.weights_sha256 == sha256_of(tmp_path / PREDICTOR_WEIGHTS)
    assert len(facts.seal) == 64
    features = torch.randn(3, 2, 8, 8, generator=torch.manual_seed(0), dtype=torch.float64)
    for found, expected in zip(
        loaded.predict(features, 5.0, 1.0), saved.predict(features, 5.0, 1.0), strict=True
    ):
        assert torch.equal(found, expected)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert sorted(file.name for file in tmp_path.iterdir()) == [PREDICTOR_FACTS, PREDICTOR_WEIGHTS]


def test_the_facts_come_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fleetstep.sampling.amed.files.write_json", full)
    with pytest.raises(SamplingError, match="No space left on device"):
        save_predictor(tmp_path / "new", predictor(), FACTS)
    # Also where there was one: old facts must not stand beside new weights.
    with pytest.raises(SamplingError, match="No space left on device"):
        save_predictor(folder, predictor(seed=1), FACTS)
    for path in (tmp_path / "new", folder):
        with pytest.raises(SamplingError, match="holds no predictor"):
            load_predictor(path)


def test_damaged_weights_are_refused(folder: Path):
    file = folder / PREDICTOR_WEIGHTS
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    for read in (load_predictor, check_predictor):
        with pytest.raises(SamplingError, match="is damaged: its sha256 is"):
            read(folder)


def test_missing_weights_are_refused(folder: Path):
    (folder / PREDICTOR_WEIGHTS).unlink()
    with pytest.raises(SamplingError, match=f"no {PREDICTOR_WEIGHTS}"):
        load_predictor(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"levels": [80.0, 10.0, 1.0, 0.002]},
        {"afs": False},
        {"scale_dir": 0.02},
        {"scale_time": 0.1},
        {"student": {"kind": "ipndm", "order": 3}},
        {"guidance": {"scale": 2.0}},
        {"dtype": "float32"},
        {"snapshot": "00" * 32},
        {"run": "another"},
        {"training": {"lr": 0.01}},
        {"weights_sha256": "00" * 32},
        {"seal": ""},
        {"seal": "0" * 64},
    ],
    ids=lambda change: next(iter(change)),
)
def test_facts_that_were_changed_are_refused(folder: Path, change: dict[str, Any]):
    rewrite(folder, change)
    with pytest.raises(SamplingError, match="was changed after it was written") as caught:
        drawn(folder)
    assert "copy the folder again, or train" in caught.value.remedy


def test_a_fact_that_was_left_out_is_refused(folder: Path):
    file = folder / PREDICTOR_FACTS
    facts = json.loads(file.read_text())
    del facts["thresholding"]
    file.write_text(json.dumps(facts))
    with pytest.raises(SamplingError, match="was changed after it was written"):
        read_facts(folder)


@pytest.mark.parametrize("levels", [[80.0, 1.0, 10.0, 0.002], [80.0, 80.0, 1.0, 0.002]])
def test_levels_that_do_not_descend_are_no_predictors(folder: Path, levels: list[float]):
    rewrite(folder, {"levels": levels}, sealed=True)
    with pytest.raises(SamplingError, match="levels must descend"):
        read_facts(folder)


@pytest.mark.parametrize(
    "change", [{"scale_time": 0.0}, {"standardised": True}], ids=["scale_time", "standardised"]
)
def test_facts_of_another_predictor_are_refused(folder: Path, change: dict[str, object]):
    rewrite(folder, change, sealed=True)
    with pytest.raises(SamplingError, match="does not hold the weights of a predictor with"):
        load_predictor(folder)


def test_weights_of_another_shape_are_refused(folder: Path):
    weights = load_file(folder / PREDICTOR_WEIGHTS)
    weights["head_r.weight"] = torch.zeros(1, 21)
    save_file(weights, folder / PREDICTOR_WEIGHTS)
    rewrite(folder, {"weights_sha256": sha256_of(folder / PREDICTOR_WEIGHTS)}, sealed=True)
    with pytest.raises(SamplingError, match=r"size mismatch for head_r\.weight"):
        load_predictor(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not a predictor of this version"),
        ('{"format": 2}', "is not a predictor of this version"),
        ("[]", "is not a predictor of this version"),
        ("[" * 200_000, "is not a predictor of this version"),
    ],
)
def test_facts_that_cannot_be_read_are_refused(folder: Path, content: str, message: str):
    (folder / PREDICTOR_FACTS).write_text(content)
    with pytest.raises(SamplingError, match=message):
        load_predictor(folder)


def test_a_folder_without_a_predictor_is_refused(tmp_path: Path):
    with pytest.raises(SamplingError, match="holds no predictor"):
        AmedSpec(predictor=str(tmp_path)).label  # noqa: B018


def test_another_number_of_calls_is_refused(folder: Path):
    with pytest.raises(SamplingError, match="makes 5 network calls, not 7: it was trained for 4"):
        drawn(folder, nfe=7)


def test_other_levels_are_refused(folder: Path):
    levels = sigmas(PolynomialSpec(rho=5), 4, 0.002, 80.0)
    with pytest.raises(SamplingError, match=r"was trained for 4 points of polynomial\(rho=7\)"):
        sample(featured_mixture(), AmedSpec(predictor=str(folder)), levels, golden_latents())


@pytest.mark.parametrize("setting", [{"schedule": SCHEDULE}, {"afs": True}])
def test_what_is_stored_cannot_be_set(folder: Path, setting: dict[str, object]):
    with pytest.raises(ValueError, match="is stored with the predictor: leave it out"):
        AmedSpec(predictor=str(folder), **setting)


def test_another_network_or_guidance_is_refused(folder: Path):
    solver = AmedSpec(predictor=str(folder))
    solver.check_network(FACTS.snapshot, "ema", None)
    with pytest.raises(SamplingError, match="was trained for digits-edm at 200,000 images"):
        solver.check_network("00" * 32, "ema", None)
    with pytest.raises(SamplingError, match="track ema"):
        solver.check_network(FACTS.snapshot, "ema_fast", None)
    with pytest.raises(SamplingError, match="with guidance none, not with scale 2"):
        solver.check_network(FACTS.snapshot, "ema", GuidanceSpec(scale=2))


def test_a_predictor_trained_again_in_the_same_folder_is_the_new_one(folder: Path):
    before, solver = drawn(folder), AmedSpec(predictor=str(folder))
    label = solver.label
    save_predictor(folder, predictor(seed=3), FACTS)
    assert solver.label != label
    assert not torch.equal(drawn(folder), before)
    save_predictor(folder, fill(predictor()), FACTS)
    assert torch.equal(drawn(folder), before)


def test_two_predictors_have_two_labels_and_one_has_one_wherever_it_lies(
    folder: Path, tmp_path: Path
):
    save_predictor(tmp_path / "copy", fill(predictor()), FACTS)
    save_predictor(tmp_path / "other", predictor(seed=1), FACTS)
    first, copy, other = (
        AmedSpec(predictor=str(path)) for path in (folder, tmp_path / "copy", tmp_path / "other")
    )
    assert first.label == copy.label != other.label
    assert first.identity == copy.identity != other.identity
    assert first.label.startswith("amed(ipndm(order=4), ")


def test_a_label_tells_how_it_was_trained_and_a_cell_what_it_draws(folder: Path, tmp_path: Path):
    save_predictor(
        tmp_path / "other",
        fill(predictor()),
        FACTS.model_copy(update={"training": {"lr": 0.01}}),
    )
    one, other = (AmedSpec(predictor=str(path)) for path in (folder, tmp_path / "other"))
    assert one.label == f"amed(ipndm(order=4), {one.facts.seal[:8]})"
    assert one.label != other.label
    assert one.identity == other.identity


def test_the_same_weights_with_other_facts_are_another_predictor(folder: Path):
    before = drawn(folder)
    # Scales are no part of the weights.
    wider = AmedPredictor(0.05, 0.2, dtype=torch.float64)
    facts = save_predictor(folder, fill(wider), FACTS.model_copy(update={"scale_dir": 0.05}))
    assert (
        facts.weights_sha256
        == save_predictor(folder.parent / "again", fill(predictor()), FACTS).weights_sha256
    )
    assert not torch.equal(drawn(folder), before)


def test_denoising_at_the_end_is_one_call_more(folder: Path):
    plain, denoiser = AmedSpec(predictor=str(folder)), featured_mixture()
    to_zero = AmedSpec(predictor=str(folder), denoise_to_zero=True)
    result = sample(denoiser, to_zero, levels_for(denoiser, to_zero, 6), golden_latents())
    assert (plain.nfe_for(4), to_zero.nfe_for(4), result.nfe) == (5, 6, 6)
    sigma_B = torch.full((4,), 0.002, dtype=torch.float64)
    assert torch.equal(result.x_BCHW, denoiser(drawn(folder), sigma_B))


def test_a_first_call_that_is_given_changes_nothing(tmp_path: Path):
    save_predictor(tmp_path, fill(predictor()), FACTS.model_copy(update={"afs": False}))
    solver, denoiser = AmedSpec(predictor=str(tmp_path)), featured_mixture()
    levels, x_T = levels_for(denoiser, solver, 6), golden_latents()
    alone = sample(denoiser, solver, levels, x_T)
    shared = first_call_of(denoiser, solver, levels[0].item(), x_T)
    before = denoiser.nfe
    given = sample(denoiser, solver, levels, x_T, first_call=shared)
    assert torch.equal(given.x_BCHW, alone.x_BCHW)
    assert (given.nfe, denoiser.nfe - before) == (6, 5)

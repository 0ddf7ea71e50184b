"""A trained predictor on disk: weights beside the facts that sampling must reuse.

predictor.safetensors   weights, and the feature statistics if there are any
predictor.json          `PredictorFacts`, with the hash of the weights and a seal; written last
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from fleetstep.durable import sha256_of, write_bytes, write_json
from fleetstep.errors import SamplingError
from fleetstep.sampling.amed.predictor import AmedPredictor
from fleetstep.sampling.spec import (
    PREDICTOR_FACTS,
    PREDICTOR_WEIGHTS,
    PredictorFacts,
    check_predictor,
)


def save_predictor(
    folder: Path, predictor: AmedPredictor, facts: PredictorFacts
) -> PredictorFacts:
    """Write a predictor; a folder that has its JSON is complete.

    Args:
        folder: made if missing; a predictor that is there is replaced.
        predictor: the weights.
        facts: the hash of the weights and the seal are filled in here.

    Returns:
        the facts as written.

    Raises:
        SamplingError: the folder cannot be written.
    """
    weights = {name: value.detach().cpu() for name, value in predictor.state_dict().items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Between the two files of a replacement, the old facts must not vouch for new weights.
        (folder / PREDICTOR_FACTS).unlink(missing_ok=True)
        write_bytes(folder / PREDICTOR_WEIGHTS, save(weights))
        digest = sha256_of(folder / PREDICTOR_WEIGHTS)
        facts = facts.model_copy(update={"weights_sha256": digest}).sealed()
        write_json(folder / PREDICTOR_FACTS, facts.model_dump(mode="json"))
    except OSError as error:
        raise SamplingError(
            f"the predictor cannot be written to {folder}: {error}", "free space or permissions"
        ) from error
    return facts


def load_predictor(folder: Path) -> tuple[AmedPredictor, PredictorFacts]:
    """A predictor as it was saved, on the CPU, frozen, and its facts.

    Raises:
        SamplingError: it is missing, damaged, changed, or not of this version.
    """
    facts, file = check_predictor(folder), folder / PREDICTOR_WEIGHTS
    predictor = AmedPredictor(
        facts.scale_dir,
        facts.scale_time,
        standardised=facts.standardised,
        dtype=getattr(torch, facts.dtype),
    )
    try:
        predictor.load_state_dict(load_file(file))
    except (RuntimeError, SafetensorError) as error:
        raise SamplingError(
            f"{file} does not hold the weights of a predictor with scale_dir="
            f"{facts.scale_dir:g}, scale_time={facts.scale_time:g}: {error}",
            "train the predictor again",
        ) from error
    return predictor.requires_grad_(False).eval(), facts

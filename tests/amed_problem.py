"""The golden problem of AMED: a mixture with features of its own, and a predictor filled by a
formula (both written down in tests/golden/solvers/amed.json).

Legend: B batch, C channels, H W pixels, K features.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from contracts.exact_denoisers import Mixture, golden_latents, problem
from fleetstep.sampling.amed.predictor import AmedPredictor
from fleetstep.sampling.amed.training import AmedTrainer, Share
from fleetstep.sampling.spec import (
    SIGMA_MAX,
    AmedStudentSpec,
    Dpm2Spec,
    DpmppSpec,
    EulerSpec,
    IpndmSpec,
    StudentSpec,
    UnipcSpec,
)
from fleetstep.sampling.spec.amed_training import AmedTrainingSpec

CPU = torch.device("cpu")


class FeaturedMixture(Mixture):
    """The mixture with a bottleneck: feat = tanh(x_k / (1 + sigma)) cos(0.1 k) + 0.05 channel."""

    def with_features(
        self, x_BCHW: Tensor, sigma_B: Tensor, labels_B: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        x_BD, k = x_BCHW.flatten(1), torch.arange(64)
        wave_BK = torch.tanh(x_BD[:, k % x_BD.shape[1]] / (1 + sigma_B[:, None]))
        wave_BK = wave_BK * torch.cos(0.1 * k.double())
        channels = 0.05 * torch.arange(3).double()
        features_BcK = wave_BK[:, None] + channels[:, None]
        return self(x_BCHW, sigma_B, labels_B), features_BcK.reshape(-1, 3, 8, 8)


def featured_mixture() -> FeaturedMixture:
    """The golden 2-D mixture with features."""
    gmm = problem()["gmm"]["d2"]
    return FeaturedMixture(
        *(torch.tensor(gmm[key], dtype=torch.float64) for key in ("weights", "means", "variances"))
    )


def golden_z() -> Tensor:
    """The golden latents as standard normal numbers."""
    return golden_latents() / SIGMA_MAX


@torch.no_grad()
def fill(predictor: AmedPredictor) -> AmedPredictor:
    """The golden start: the n-th tensor's i-th element is sin(0.7 i + 1.3 n + 0.2) / sqrt(fan)."""
    for n, parameter in enumerate(predictor.parameters()):
        i = torch.arange(parameter.numel(), dtype=torch.float64)
        fan = parameter.shape[1] if parameter.dim() == 2 else 10
        values = torch.sin(0.7 * i + 1.3 * n + 0.2) / math.sqrt(fan)
        parameter.copy_(values.view_as(parameter))
    return predictor


def student_of(name: str, params: dict[str, Any]) -> StudentSpec:
    """A golden row's student."""
    prediction = "data" if params.get("predict_x0") else "noise"
    match name:
        case "amed":
            return AmedStudentSpec()
        case "euler":
            return EulerSpec()
        case "dpm":
            return Dpm2Spec()
        case "ipndm":
            return IpndmSpec(order=params["max_order"])
        case "dpmpp":
            return DpmppSpec(
                order=params["max_order"],
                prediction=prediction,
                lower_order_final=params["lower_order_final"],
            )
        case "unipc":
            return UnipcSpec(
                order=params["max_order"], prediction=prediction, variant=params["variant"]
            )
    raise AssertionError(name)


def trainer(
    spec: AmedTrainingSpec, share: Share | None = None, *, standardise: bool = False
) -> AmedTrainer:
    """A trainer on the golden mixture, at its own start."""
    shared = {} if share is None else {"share": share}
    return AmedTrainer(
        featured_mixture(),
        spec,
        shape=(2, 1, 1),
        classes=0,
        device=CPU,
        standardise=standardise,
        **shared,
    )

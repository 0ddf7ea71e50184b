"""The AMED predictor g: from bottleneck features and two noise levels to r, c and a.

Source: Zhou et al. 2024, Fig. 6 and section 3.4; one predictor serves all steps of a trajectory.

Legend: B batch, c channels, h w pixels of the bottleneck, E time embedding.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fleetstep.networks.starts import Normal, Xavier
from fleetstep.sampling.amed.features import FEATURES, pooled

_HIDDEN = 128
_SUMMARY = 4
_TIME = 8
# (1 / 10,000)^(k / 3) in float32, as the authors' predictors have it: at sigma = 80 the difference
# to float64 is seen in the eighth digit of r.
_FREQUENCIES = [
    float(np.float32(np.float64(np.float32(1e-4)) ** np.float32(k / 3))) for k in range(_TIME // 2)
]

# Least deviation, relative to the largest of all features, that is not rounding.
_VARIES = 1e-6


class Learned(NamedTuple):
    """What is predicted for a step, each [B, 1, 1, 1], or [1, 1, 1, 1] if the same for all.

    r in (0, 1) places the intermediate level s'^r s^(1-r), c scales the direction taken from
    there, a scales the level that the network is told there.
    """

    r: Tensor
    c: Tensor
    a: Tensor


class AmedPredictor(nn.Module):
    """About nine thousand parameters: 8,929 for r, 8,950 with c, 8,971 with c and a.

    Args:
        scale_dir: c lies in 1 +- scale_dir; 0 has no such output, and c is 1.
        scale_time: a lies in 1 +- scale_time; 0 has no such output, and a is 1.
        seed: of the start.
        standardised: whether features are standardised by statistics that are stored here.
        dtype: of the parameters, and of the computation.
    """

    feature_mean: Tensor
    feature_std: Tensor

    def __init__(
        self,
        scale_dir: float,
        scale_time: float,
        *,
        seed: int = 0,
        standardised: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.scale_dir, self.scale_time, self.standardised = scale_dir, scale_time, standardised
        inputs = _SUMMARY + 2 * _TIME
        self.embed_time = nn.Linear(_TIME, _TIME)
        self.encode_0 = nn.Linear(FEATURES, _HIDDEN)
        self.encode_1 = nn.Linear(_HIDDEN, _SUMMARY)
        self.head_r = nn.Linear(inputs, 1)
        self.head_c = nn.Linear(inputs, 1) if scale_dir else None
        self.head_a = nn.Linear(inputs, 1) if scale_time else None
        if standardised:
            self.register_buffer("feature_mean", torch.zeros(FEATURES))
            self.register_buffer("feature_std", torch.ones(FEATURES))
        self._start(seed)
        self.to(dtype)

    @torch.no_grad()
    def _start(self, seed: int) -> None:
        """N(0, 1 / fan_in), the time embedding Xavier-uniform; biases zero."""
        for name, layer in self.named_children():
            assert isinstance(layer, nn.Linear)
            law = Xavier() if name == "embed_time" else Normal(1 / math.sqrt(layer.in_features))
            law.fill(layer.weight, seed, f"amed|{name}.weight")
            layer.bias.zero_()

    def forward(self, features_B64: Tensor, t_cur_B: Tensor, t_next_B: Tensor) -> Learned:
        """r, c and a of a step.

        Args:
            features_B64: see `pooled`; zeros where no network was called.
            t_cur_B: the level the step starts from, float64.
            t_next_B: the level it goes to, float64.
        """
        summary = self.encode_1(F.silu(self.encode_0(features_B64.to(self._dtype))))
        seen = torch.cat((summary, self._embedded(t_cur_B), self._embedded(t_next_B)), dim=1)
        r = torch.sigmoid(self.head_r(seen))[:, :, None, None]
        one = torch.ones_like(r)
        c = one if self.head_c is None else _around_one(self.head_c(seen), self.scale_dir)
        a = one if self.head_a is None else _around_one(self.head_a(seen), self.scale_time)
        return Learned(r, c, a)

    def predict(self, features: Tensor | None, t_cur: float, t_next: float) -> Learned:
        """r, c and a of a step, from the network's features as they are.

        Args:
            features: [B, c, h, w]; None where no network was called (analytical first step): the
                outputs are then the same for all images, and have one row.
            t_cur, t_next: the levels of the step.
        """
        weight = self.head_r.weight
        if features is None:
            features_B64 = weight.new_zeros(1, FEATURES)
        else:
            features_B64 = self._standard(pooled(features).to(weight.dtype))
        levels = (
            torch.full((len(features_B64),), level, dtype=torch.float64, device=weight.device)
            for level in (t_cur, t_next)
        )
        learned: Learned = self(features_B64, *levels)
        return learned

    @torch.no_grad()
    def freeze_statistics(self, mean_64: Tensor, std_64: Tensor) -> None:
        """Standardise by these from now on; a feature that does not vary is left at its scale."""
        varies = std_64 > _VARIES * std_64.max()
        self.feature_mean.copy_(mean_64)
        self.feature_std.copy_(torch.where(varies, std_64, 1.0))

    def _standard(self, features_B64: Tensor) -> Tensor:
        if not self.standardised:
            return features_B64
        return (features_B64 - self.feature_mean) / self.feature_std

    def _embedded(self, t_B: Tensor) -> Tensor:
        frequencies_K = torch.tensor(_FREQUENCIES, dtype=torch.float64, device=t_B.device)
        angle_BK = t_B.double()[:, None] * frequencies_K
        waves_BE = torch.cat((angle_BK.sin(), angle_BK.cos()), dim=1)
        return F.silu(self.embed_time(waves_BE.to(self._dtype)))

    @property
    def _dtype(self) -> torch.dtype:
        return self.head_r.weight.dtype


def _around_one(raw_B1: Tensor, scale: float) -> Tensor:
    around: Tensor = 1 + scale * (2 * torch.sigmoid(raw_B1) - 1)
    return around[:, :, None, None]

"""Training of an AMED predictor by distillation (Zhou et al. 2024, Algorithm 1), without Ray.

One loop: a batch of latents, the teacher's trajectory on the finer grid, and one Adam update for
each of the student's N - 1 steps. The network is frozen, but the gradient passes through it.

Legend: B batch (of this worker), C channels, H W pixels, N points, M teacher levels between two.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from fleetstep.errors import NonFiniteError
from fleetstep.sampling.amed.features import FEATURES, pooled
from fleetstep.sampling.amed.latents import training_latents
from fleetstep.sampling.amed.plugin import plugin_step
from fleetstep.sampling.amed.predictor import AmedPredictor
from fleetstep.sampling.amed.teacher import Teacher
from fleetstep.sampling.denoiser import FeatureDenoiser
from fleetstep.sampling.guidance import Guided
from fleetstep.sampling.solvers.step import State
from fleetstep.sampling.spec import PredictorFacts
from fleetstep.sampling.spec.amed_training import AmedTrainingSpec
from fleetstep.sampling.walk import Walk

_LARGEST: Final = 1e5
"""What an infinite element of a gradient becomes."""

_MOMENTS: Final = ("exp_avg", "exp_avg_sq")

SumOverWorkers = Callable[[Tensor], Tensor]
"""A flat tensor to its sum over all workers, on the same device; for one worker the identity."""


@dataclass(frozen=True)
class Share:
    """Which part of every batch this worker has.

    Args:
        rank: 0 .. world - 1.
        world: number of workers, at most half the batch.
        total: the sum over workers.
    """

    rank: int
    world: int
    total: SumOverWorkers

    def part_of(self, batch: int) -> tuple[int, int]:
        """First and one past the last row of this worker."""
        return self.rank * batch // self.world, (self.rank + 1) * batch // self.world


_ALONE = Share(0, 1, lambda values: values)


@dataclass(frozen=True)
class LoopReport:
    """What one loop did; the same on every worker.

    Args:
        loop: its index.
        images: latents seen up to its end, over all workers.
        losses: squared error per image of each of the N - 1 steps, before its update.
        grad_norms: Euclidean norm of each update's gradient.
        replaced: gradient elements that were not finite and were replaced (0 or +-1e5).
    """

    loop: int
    images: int
    losses: tuple[float, ...]
    grad_norms: tuple[float, ...]
    replaced: int


@dataclass(frozen=True)
class TrainerState:
    """Everything that resuming needs: bit-exact.

    Args:
        tensors: by name, on the CPU: weights, feature statistics, both Adam moments.
        numbers: JSON-able: loops done, updates done.
    """

    tensors: dict[str, Tensor]
    numbers: dict[str, int]


class AmedTrainer:
    """Trains a predictor, loop by loop.

    Args:
        denoiser: plain, without guidance (the spec's is added here); in evaluation mode. Its
            parameters are frozen.
        spec: see `AmedTrainingSpec`.
        shape: (C, H, W) of an image.
        classes: number of classes; 0 for an unconditional network.
        device: where the denoiser is.
        standardise: standardise features by statistics that are collected before the first loop
            and frozen: for networks without a bottleneck (DiT), whose scale is arbitrary.
        share: this worker's part of the batch.

    Attributes:
        predictor: what is trained.
        levels: of the student, host numbers.
        loops_done: the next loop to run.

    Raises:
        SamplingError: the schedule has no finer grid for the teacher, or the network no range.
    """

    def __init__(
        self,
        denoiser: FeatureDenoiser,
        spec: AmedTrainingSpec,
        *,
        shape: tuple[int, int, int],
        classes: int,
        device: torch.device,
        standardise: bool = False,
        share: Share = _ALONE,
    ) -> None:
        self.spec, self._shape, self._classes = spec, shape, classes
        self._device, self._share = device, share
        self._dtype: torch.dtype = getattr(torch, spec.dtype)
        self._teacher = Teacher(_guided_and_frozen(denoiser, spec), spec)
        self.levels = self._teacher.levels
        self.predictor = AmedPredictor(
            spec.scale_dir,
            spec.chosen_scale_time,
            seed=spec.seed,
            standardised=standardise,
            dtype=self._dtype,
        ).to(device)
        self._step = plugin_step(spec.student, self.levels, self.predictor.predict)
        self._adam = torch.optim.Adam(self.predictor.parameters(), lr=spec.lr)
        self.loops_done = 0

    def run_loop(self, index: int) -> LoopReport:
        """Loop `index` on its latents, which are keyed by (seed, position).

        Raises:
            NonFiniteError: a loss is not finite; it names loop and step.
        """
        first = index * self.spec.batch
        if self.predictor.standardised and self.loops_done == 0:
            self._collect_statistics(*self._drawn(first))
        return self.learn(index, *self._drawn(first))

    def learn(self, index: int, z_BCHW: Tensor, labels_B: Tensor | None) -> LoopReport:
        """One loop on given latents: this worker's part of the batch.

        Args:
            index: of the loop.
            z_BCHW: standard normal.
            labels_B: class ids, or None.

        Raises:
            NonFiniteError: a loss is not finite; it names loop and step.
        """
        x_T = self.levels[0] * z_BCHW.to(self._device, self._dtype)
        taught = self._teacher.trajectory(x_T, labels_B)
        lesson = self._lesson(labels_B)
        state, figures = State(0, x_T), []
        for y_BCHW in taught[1:]:
            state = self._step(lesson, state)
            figures.append(self._update((state.x_BCHW - y_BCHW).square().sum()))
            state = _detached(state, y_BCHW if self.spec.restarts else state.x_BCHW)
        self.loops_done = index + 1
        return self._reported(index, torch.stack(figures))

    def _lesson(self, labels_B: Tensor | None) -> Walk:
        """The student's problem in one loop; gradients pass through the network."""
        return Walk(
            self._teacher.denoiser,
            labels_B,
            starts_analytically=self.spec.afs,
            thresholding=self.spec.thresholding,
        )

    def _update(self, loss: Tensor) -> Tensor:
        """One update; [3]: loss per image, gradient norm, elements replaced, on the device."""
        parameters = list(self.predictor.parameters())
        gradients = torch.autograd.grad(
            loss / self.spec.batch, parameters, allow_unused=True, materialize_grads=True
        )
        parts = [loss.detach().reshape(1) / self.spec.batch, *(g.reshape(-1) for g in gradients)]
        # One sum for all: every worker then takes the same step.
        total = self._share.total(torch.cat(parts))
        gradient = total[1:]
        replaced = (~gradient.isfinite()).sum()
        gradient = gradient.nan_to_num(0.0, _LARGEST, -_LARGEST)
        sizes = [parameter.numel() for parameter in parameters]
        for parameter, piece in zip(parameters, torch.split(gradient, sizes), strict=True):
            parameter.grad = piece.view_as(parameter)
        self._adam.step()
        return torch.stack((total[0], gradient.norm(), replaced.to(total.dtype)))

    def _reported(self, index: int, figures: Tensor) -> LoopReport:
        """The only wait for the device in a loop beside the teacher's own check."""
        losses, norms, replaced = figures.T.tolist()
        for step, loss in enumerate(losses, start=1):
            if not math.isfinite(loss):
                raise NonFiniteError(
                    f"the loss of AMED training is {loss} in loop {index}, step {step} of "
                    f"{len(losses)} ({self.levels[step - 1]:g} to {self.levels[step]:g})",
                    "use dtype: float64, a smaller lr, or another student",
                )
        images = (index + 1) * self.spec.batch
        return LoopReport(index, images, tuple(losses), tuple(norms), int(sum(replaced)))

    def _drawn(self, first: int) -> tuple[Tensor, Tensor | None]:
        """This worker's part of the batch at `first`: latents, and labels where there are any."""
        begin, end = self._share.part_of(self.spec.batch)
        return training_latents(
            self.spec.seed, first + begin, end - begin, self._shape, self._classes, self._device
        )

    @torch.no_grad()
    def _collect_statistics(self, z_BCHW: Tensor, labels_B: Tensor | None) -> None:
        """Mean and deviation of each feature over a batch of the teacher's images, at the levels
        where the student's steps start with a network call.
        """
        x_T = self.levels[0] * z_BCHW.to(self._device, self._dtype)
        taught = self._teacher.trajectory(x_T, labels_B)
        lesson = self._lesson(labels_B)
        rows = [
            pooled(features).double()
            for x_BCHW, level in zip(taught[:-1], self.levels[:-1], strict=True)
            if (features := lesson.denoise_with_features(x_BCHW, level)[1]) is not None
        ]
        rows = rows or [x_T.new_zeros(1, FEATURES, dtype=torch.float64)]
        self.predictor.freeze_statistics(*self._moments(torch.cat(rows)))

    def _moments(self, rows_R64: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the rows of all workers, each [64]."""
        count = rows_R64.new_full((1,), len(rows_R64))
        total = self._share.total(torch.cat((count, rows_R64.sum(0))))
        count, mean_64 = total[0], total[1:] / total[0]
        squares = self._share.total((rows_R64 - mean_64).square().sum(0))
        return mean_64, (squares / count).sqrt()

    def facts(self, *, snapshot: str, track: str, run: str, images_seen: int) -> PredictorFacts:
        """What is stored with the predictor; `save_predictor` fills in hash and seal.

        Args:
            snapshot: digest of the denoiser's weights.
            track: their EMA track.
            run: name of the run they come from.
            images_seen: by that run, at these weights.
        """
        spec = self.spec
        return PredictorFacts.model_validate(
            {
                "student": spec.student,
                "schedule": spec.chosen_schedule,
                "levels": self.levels,
                "afs": spec.afs,
                "scale_dir": spec.scale_dir,
                "scale_time": spec.chosen_scale_time,
                "guidance": spec.guidance,
                "thresholding": spec.thresholding,
                "dtype": spec.dtype,
                "snapshot": snapshot,
                "track": track,
                "run": run,
                "images_seen": images_seen,
                "standardised": self.predictor.standardised,
                "weights_sha256": "",
                # The budget of the last start says less than what was drawn over all of them.
                "training": spec.model_dump(mode="json")
                | {"latents_seen": self.loops_done * spec.batch},
            }
        )

    def state_dict(self) -> TrainerState:
        """Everything that resuming needs, copied to the CPU."""
        tensors = {f"predictor.{n}": value for n, value in self.predictor.state_dict().items()}
        updates = 0
        for name, parameter in self.predictor.named_parameters():
            moments = self._adam.state.get(parameter, {})
            for moment in _MOMENTS:
                tensors[f"{moment}.{name}"] = moments.get(moment, torch.zeros_like(parameter))
            updates = int(moments.get("step", 0))
        copies = {name: value.detach().cpu().clone() for name, value in tensors.items()}
        return TrainerState(copies, {"loops_done": self.loops_done, "updates": updates})

    def load_state_dict(self, state: TrainerState) -> None:
        """Go on from a state of the same training."""
        tensors, updates = state.tensors, state.numbers["updates"]
        self.predictor.load_state_dict(
            {name: tensors[f"predictor.{name}"] for name in self.predictor.state_dict()}
        )
        for name, parameter in self.predictor.named_parameters():
            moments = {moment: tensors[f"{moment}.{name}"] for moment in _MOMENTS}
            self._adam.state[parameter] = {
                # Adam counts in a float32 tensor.
                "step": torch.tensor(float(updates)),
                **{moment: value.to(parameter, copy=True) for moment, value in moments.items()},
            }
        self.loops_done = state.numbers["loops_done"]


def _guided_and_frozen(denoiser: FeatureDenoiser, spec: AmedTrainingSpec) -> FeatureDenoiser:
    if isinstance(denoiser, nn.Module):
        denoiser.requires_grad_(False)
    return denoiser if spec.guidance is None else Guided(denoiser, spec.guidance)


def _detached(state: State, x_BCHW: Tensor) -> State:
    """The state to take the next step from, at x; nothing of the step is differentiated again."""
    levels = tuple(v.detach() if isinstance(v, Tensor) else v for v in state.levels)
    return State(state.i, x_BCHW.detach(), tuple(h.detach() for h in state.history), levels)

"""Every solver keeps the solver contract."""

from __future__ import annotations

from typing import get_args

from contracts.solver_contract import DeterministicContract, SolverContract, StochasticContract
from fleetstep.sampling.spec import (
    AcceleratedDdimSpec,
    AcceleratedDdpmSpec,
    AmedSpec,
    DdpmSolverSpec,
    DeisSpec,
    Dpm2Spec,
    DpmppSdeSpec,
    DpmppSinglestepSpec,
    DpmppSpec,
    EdmAblationSpec,
    EulerSpec,
    HeunAbSpec,
    HeunSpec,
    IpndmSpec,
    IpndmVSpec,
    PlmsSpec,
    PndmSpec,
    Rk45Spec,
    SolverSpec,
    UnipcSpec,
)


class TestEuler(DeterministicContract):
    solver = EulerSpec()


class TestHeun(DeterministicContract):
    solver = HeunSpec()


class TestHeunAb(DeterministicContract):
    solver = HeunAbSpec()


class TestDpm2(DeterministicContract):
    solver = Dpm2Spec()


class TestDpm2Elsewhere(DeterministicContract):
    solver = Dpm2Spec(r=0.4)


class TestAblation(DeterministicContract):
    solver = EdmAblationSpec(alpha=0.5)
    steps = (256, 512)


class TestAblationVe(DeterministicContract):
    solver = EdmAblationSpec(coordinates="ve")
    straight = ends_on_image = False


class TestAblationVp(DeterministicContract):
    solver = EdmAblationSpec(method="euler", coordinates="vp")
    straight = ends_on_image = unscaled = False


class TestIpndm1(DeterministicContract):
    solver = IpndmSpec(order=1)


class TestIpndm2(DeterministicContract):
    solver = IpndmSpec(order=2)


class TestIpndm4(DeterministicContract):
    solver = IpndmSpec()


class TestIpndmV3(DeterministicContract):
    solver = IpndmVSpec(order=3)
    steps, graded = (256, 512), True


class TestIpndmV4(DeterministicContract):
    solver = IpndmVSpec()
    steps, graded = (512, 1024), True


class TestDeis2(DeterministicContract):
    solver = DeisSpec(order=2)


class TestDeis3(DeterministicContract):
    solver = DeisSpec()
    steps, graded = (256, 512), True


class TestDeis4(DeterministicContract):
    solver = DeisSpec(order=4)
    steps, graded = (256, 512), True


class TestDeisLogSigma(DeterministicContract):
    solver = DeisSpec(order=2, basis="log_sigma", lower_order_final=True)


class TestPlms(DeterministicContract):
    solver = PlmsSpec()


class TestPndm(DeterministicContract):
    solver = PndmSpec()


class TestDpmpp1(DeterministicContract):
    solver = DpmppSpec(order=1)


class TestDpmpp2(DeterministicContract):
    solver = DpmppSpec()


class TestDpmpp2Noise(DeterministicContract):
    solver = DpmppSpec(prediction="noise", variant="taylor")


class TestDpmpp3(DeterministicContract):
    # The official factor: order 2 in the limit, without the lower orders at the end.
    solver = DpmppSpec(order=3)
    order_solver = DpmppSpec(order=3, lower_order_final=False)
    steps = (512, 1024)


class TestDpmpp3Derived(DeterministicContract):
    solver = DpmppSpec(order=3, d2_factor=2)
    order_solver = DpmppSpec(order=3, d2_factor=2, lower_order_final=False)
    steps, graded = (512, 1024), True


class TestDpmpp3Noise(DeterministicContract):
    solver = DpmppSpec(order=3, prediction="noise")
    order_solver = DpmppSpec(order=3, prediction="noise", lower_order_final=False)
    steps = (512, 1024)


class TestSinglestep2(DeterministicContract):
    solver = DpmppSinglestepSpec(order=2)


class TestSinglestep3(DeterministicContract):
    solver = DpmppSinglestepSpec()
    # Both leave two calls after the full steps: another remainder has another last step.
    steps = (128, 512)


class TestSinglestep3Noise(DeterministicContract):
    solver = DpmppSinglestepSpec(prediction="noise")
    steps = (128, 512)


class TestUnipc1(DeterministicContract):
    solver = UnipcSpec(order=1, variant="bh1")
    order_solver = UnipcSpec(order=1, variant="bh1", lower_order_final=False)


class TestUnipc2(DeterministicContract):
    solver = UnipcSpec(order=2)
    order_solver = UnipcSpec(order=2, lower_order_final=False)


class TestUnipc3(DeterministicContract):
    solver = UnipcSpec()
    order_solver = UnipcSpec(lower_order_final=False)
    steps = (256, 512)


class TestUnipc2Noise(DeterministicContract):
    solver = UnipcSpec(order=2, prediction="noise")
    order_solver = UnipcSpec(order=2, prediction="noise", lower_order_final=False)
    steps = (256, 512)


class TestDpmppSdeFlow2(DeterministicContract):
    solver = DpmppSdeSpec(eta=0.0)


class TestDpmppSdeFlow3(DeterministicContract):
    solver = DpmppSdeSpec(order=3, eta=0.0)
    steps = (512, 1024)


class TestDpmppSde2(StochasticContract):
    solver = DpmppSdeSpec()


class TestDpmppSde3(StochasticContract):
    solver = DpmppSdeSpec(order=3)


class TestDdpm(StochasticContract):
    solver = DdpmSolverSpec()


class TestDdpmLarge(StochasticContract):
    solver = DdpmSolverSpec(variance="fixed_large")


class TestHeunChurned(StochasticContract):
    solver = HeunSpec(s_churn=20.0, s_max=50.0, s_noise=1.003)


class TestAccelerated8(DeterministicContract):
    solver = AcceleratedDdimSpec(equation=8)
    steps, straight = (512, 1024), False


class TestAccelerated15(DeterministicContract):
    solver = AcceleratedDdimSpec(equation=15)
    steps, straight = (512, 1024), False


class TestAccelerated22(DeterministicContract):
    solver = AcceleratedDdimSpec(equation=22)
    steps, straight = (512, 1024), False


class TestAccelerated28(DeterministicContract):
    solver = AcceleratedDdimSpec(equation=28)


class TestAccelerated30(DeterministicContract):
    solver = AcceleratedDdimSpec()
    steps = (512, 1024)


class TestAcceleratedDdpm10(StochasticContract):
    solver = AcceleratedDdpmSpec(equation=10)


class TestAcceleratedDdpm23(StochasticContract):
    solver = AcceleratedDdpmSpec()


def test_every_solver_of_the_union_keeps_the_contract():
    classes = [*DeterministicContract.__subclasses__(), *StochasticContract.__subclasses__()]
    tested = {type(cls.solver) for cls in classes}
    union = set(get_args(get_args(SolverSpec)[0]))
    # They have tests of their own: a trained predictor is no spec alone, and RK45 has no steps.
    assert union - tested == {AmedSpec, Rk45Spec}
    for cls in classes:
        assert cls.solver.stochastic == issubclass(cls, StochasticContract)
    assert SolverContract not in classes

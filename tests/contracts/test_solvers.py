"""Every solver keeps the solver contract."""

from __future__ import annotations

from contracts.exact_denoisers import golden
from contracts.solver_contract import SolverContract
from fleetstep.sampling.spec import Dpmpp2mSpec, EulerSpec, HeunSpec, IpndmSpec


class TestEuler(SolverContract):
    solver = EulerSpec()


class TestHeun(SolverContract):
    solver = HeunSpec()


class TestIpndm1(SolverContract):
    solver = IpndmSpec(order=1)
    # It is Euler on the same levels, which tests/laws/test_solver_orders.py holds to the bit.
    has_golden_runs = False


class TestIpndm2(SolverContract):
    solver = IpndmSpec(order=2)


class TestIpndm3(SolverContract):
    solver = IpndmSpec(order=3)


class TestIpndm4(SolverContract):
    solver = IpndmSpec()


class TestDpmpp2m(SolverContract):
    solver = Dpmpp2mSpec()


def test_every_golden_run_belongs_to_a_tested_solver():
    tested = [cls.solver.model_dump() for cls in SolverContract.__subclasses__()]
    orphans = [run["solver"] for run in golden()["runs"] if run["solver"] not in tested]
    assert not orphans
    assert len(golden()["runs"]) == 24

"""`fleetstep doctor` on a sound machine, and on one where something is broken."""

from __future__ import annotations

import pytest

from fleetstep.orchestration import doctor


@pytest.mark.usefixtures("ray_cluster")
def test_a_sound_installation_has_nothing_bad_and_every_subject_is_named():
    findings = {finding.subject: finding for finding in doctor.examine()}
    assert [f.line() for f in findings.values() if f.status == "bad"] == []
    assert {"python", "torch", "deepspeed", "torch and torchvision", "shared memory"} <= set(
        findings
    )
    assert findings["ray"].seen.startswith("2 CPUs, 0 GPUs")
    assert findings["extractor fs-rn20"].status == "ok"
    assert findings["distance of real images"].status == "ok"
    assert findings["extractor inception"].seen.startswith(
        ("FID not run: no weights", "FID can be measured")
    )


@pytest.mark.usefixtures("ray_cluster")
def test_a_check_that_breaks_becomes_a_finding_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
):
    def broken() -> list[doctor.Finding]:
        raise OSError("no such device")

    monkeypatch.setattr(doctor, "_shared_memory", broken)
    findings = {finding.subject: finding for finding in doctor.examine()}
    assert findings["broken"].status == "bad"
    assert "no such device" in findings["broken"].seen
    assert findings["ray"].status == "ok"

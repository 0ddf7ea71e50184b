"""What `doctor` says of extractors: sound, broken, and with or without the weights of FID."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from fleetstep.evaluation import features, inception, self_tests, spec
from fleetstep.orchestration import doctor
from inception_files import write_inception


def found(findings: list[doctor.Finding]) -> dict[str, doctor.Finding]:
    return {finding.subject: finding for finding in findings}


class TestPackagedExtractor:
    def test_a_sound_one(self):
        findings = found(doctor._packaged_extractor())
        assert {f.status for f in findings.values()} == {"ok"}
        assert findings["distance of real images"].seen.startswith(
            "0.0326 between two halves of 800 digits (expected: 0.020 to 0.072)"
        )

    def test_other_features_are_bad(self, monkeypatch: pytest.MonkeyPatch):
        """Pixels divided by 256, say: the name and the digest are right, the numbers are not."""
        load = features.load_extractor

        def load_wrong(*args: spec.Rn20Spec) -> object:
            right = load(*args)
            return replace(right, network=lambda x: tuple(y * 1.7 for y in right.network(x)))

        monkeypatch.setattr(features, "load_extractor", load_wrong)
        findings = found(doctor._packaged_extractor())
        assert findings["extractor fs-rn20"].status == "bad"
        assert "another metric" in findings["extractor fs-rn20"].remedy
        assert findings["distance of real images"].status == "bad"
        assert "features or statistics are broken" in findings["distance of real images"].remedy


class TestInception:
    def test_without_weights_fid_is_not_run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(inception, "cached_inception", lambda: tmp_path / "inception.pt")
        (finding,) = doctor._inception()
        assert finding.status == "note"
        assert finding.seen.startswith("FID not run: no weights (no file ")
        assert "path" in finding.remedy

    def test_another_file_in_its_place_does_not_count(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        path = tmp_path / spec.INCEPTION_FILE
        path.write_bytes(b"something else")
        monkeypatch.setattr(inception, "cached_inception", lambda: path)
        (finding,) = doctor._inception()
        assert finding.status == "note"
        assert "not f58cb9b6ec32" in finding.seen

    @pytest.fixture
    def _verified(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A random network of the same form, taken for the pinned one."""
        path = tmp_path / spec.INCEPTION_FILE
        write_inception(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        monkeypatch.setattr(inception, "cached_inception", lambda: path)
        monkeypatch.setattr(inception, "INCEPTION_SHA256", digest)
        monkeypatch.setattr(
            spec, "InceptionSpec", functools.partial(spec.InceptionSpec, sha256=digest)
        )

    @pytest.mark.usefixtures("_verified")
    def test_with_weights_it_is_tried_in_both_modes(self, monkeypatch: pytest.MonkeyPatch):
        tried = []
        fault_of = self_tests.fault_of

        def watched(extractor: features.Extractor) -> str:
            tried.append(extractor.name)
            return fault_of(extractor)

        monkeypatch.setattr(self_tests, "fault_of", watched)
        (finding,) = doctor._inception()
        assert finding.status == "ok", finding.line()
        assert finding.seen.startswith("FID can be measured: ")
        assert tried == ["inception.clean", "inception.tf"]

    @pytest.mark.usefixtures("_verified")
    def test_a_network_that_answers_nonsense_is_bad(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(self_tests, "fault_of", lambda e: f"no good in {e.dim} features")
        (finding,) = doctor._inception()
        assert finding.status == "bad"
        assert "clean: no good in 2048 features; legacy_tensorflow: no good" in finding.seen
        assert "trust no FID" in finding.remedy

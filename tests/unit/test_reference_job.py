"""`fleetstep reference`: statistics that other tools read, and sweeps reuse."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleetstep.config import PoolSpec
from fleetstep.config.extractor_text import parse_extractor
from fleetstep.data.pack import pack_digits
from fleetstep.errors import DataError, UsageError
from fleetstep.evaluation.features import load_extractor
from fleetstep.evaluation.reference_files import read_statistics
from fleetstep.evaluation.spec import InceptionSpec, Rn20Spec
from fleetstep.orchestration.measures import wherever_read
from fleetstep.orchestration.reference_job import WrittenForm, reference_set, write_reference
from fleetstep.orchestration.snapshots import reference_images
from fleetstep.orchestration.sweep_worker import build_worker
from in_process_cluster import InProcessCluster


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference") / "digits"
    pack_digits(folder)
    return folder


def written(digits: Path, out: Path, form: WrittenForm = "edm", **changes: Any) -> dict[str, Any]:
    storage = out.parent / "runs"
    worker = functools.partial(build_worker, storage, (Rn20Spec(),))
    options: dict[str, Any] = {
        "split": "heldout",
        "extractor": Rn20Spec(),
        "storage": storage,
        "pool": PoolSpec(),
        "cluster": InProcessCluster(lambda fault: worker(fault=fault)),
    }
    return write_reference(digits, form=form, out=out, **(options | changes))


def test_the_file_holds_mean_and_covariance_of_the_splits_features(
    digits: Path, tmp_path: Path
) -> None:
    facts = written(digits, tmp_path / "ref.npz")
    reference = reference_set(digits, "heldout")
    features = load_extractor(Rn20Spec())(
        reference_images(reference, 0, reference.samples)
    ).features.astype(np.float64)
    with np.load(tmp_path / "ref.npz", allow_pickle=False) as file:
        np.testing.assert_allclose(file["mu"], features.mean(0), atol=2.0**-17)
        np.testing.assert_allclose(file["sigma"], np.cov(features, rowvar=False), atol=1e-5)
    assert (facts["images"], facts["features"]) == features.shape
    assert facts["sha256"] == read_statistics(tmp_path / "ref.npz").sha256


def test_the_second_time_nothing_is_computed(digits: Path, tmp_path: Path) -> None:
    first = written(digits, tmp_path / "a.npz")
    none = InProcessCluster(lambda fault: pytest.fail("a worker was built"))
    assert written(digits, tmp_path / "b.npz", cluster=none)["sha256"] == first["sha256"]


def test_clean_fids_kernel_distance_reads_the_features(digits: Path, tmp_path: Path) -> None:
    facts = written(digits, tmp_path / "kid.npz", form="clean-fid-kid")
    with np.load(tmp_path / "kid.npz", allow_pickle=False) as file:
        assert file["feats"].shape == (facts["images"], facts["features"])


def test_what_cannot_be_written_is_refused_before_any_work(digits: Path, tmp_path: Path) -> None:
    none = InProcessCluster(lambda fault: pytest.fail("a worker was built"))
    with pytest.raises(DataError, match=r"no split 'test'; use one of|no split 'test'"):
        written(digits, tmp_path / "ref.npz", split="test", cluster=none)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="--out"):
        written(digits, tmp_path / "folder", cluster=none)
    with pytest.raises(UsageError, match=r"--form: adm(.|\n)*use one of: edm, clean-fid-kid"):
        written(digits, tmp_path / "ref.npz", form="adm", cluster=none)  # type: ignore[arg-type]


def test_extractors_are_written_as_kinds_or_settings() -> None:
    assert parse_extractor("fs-rn20") == Rn20Spec()
    assert parse_extractor("{kind: inception, resize: legacy_tensorflow}") == InceptionSpec(
        resize="legacy_tensorflow"
    )
    with pytest.raises(UsageError, match="'vgg' is not a kind; valid kinds: fs-rn20"):
        parse_extractor("vgg")


def test_actors_find_weights_wherever_they_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    named = [InceptionSpec(path="weights.pt"), InceptionSpec(), Rn20Spec()]
    found = wherever_read(named)
    assert [getattr(spec, "path", None) for spec in found] == [
        str(tmp_path / "weights.pt"),
        None,
        None,
    ]

"""The extractor that a configuration names; weights that do not belong to its network."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import safetensors.torch
from torch import Tensor

from fleetstep.errors import ExtractorError
from fleetstep.evaluation import features
from fleetstep.evaluation.features import load_extractor
from fleetstep.evaluation.resnet20 import ResNet20
from fleetstep.evaluation.spec import ClipSpec, DinoV2Spec, InceptionSpec, Rn20Spec


@pytest.mark.parametrize("renamed", ["conv1.weight", "linear.bias"])
def test_packaged_weights_of_another_network_are_refused(
    renamed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Whose digest is the expected one: a wrong pin must not leave a layer at random."""
    tensors = ResNet20().state_dict()
    tensors = {k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}
    (tmp_path / "weights").mkdir()

    def installed(held: dict[str, Tensor]) -> None:
        content = safetensors.torch.save(held)
        (tmp_path / "weights/fs-rn20.safetensors").write_bytes(content)
        monkeypatch.setattr(features, "RN20_SHA256", hashlib.sha256(content).hexdigest())

    monkeypatch.setattr(features.resources, "files", lambda _: tmp_path)
    installed(tensors)
    assert load_extractor(Rn20Spec()).dim == 112
    installed({("other" if key == renamed else key): value for key, value in tensors.items()})
    with pytest.raises(ExtractorError, match=f"{renamed} are missing and other are unknown"):
        load_extractor(Rn20Spec())
    tensors["conv1.weight"] = tensors["conv1.weight"][:, :1].contiguous()
    installed(tensors)
    with pytest.raises(ExtractorError, match=r"conv1.weight of shape \(16, 1, 3, 3\)"):
        load_extractor(Rn20Spec())


@pytest.mark.parametrize(
    "spec",
    [
        ClipSpec(path="ViT-B-32.pt", sha256="0" * 64),
        DinoV2Spec(path="dinov2.pth", sha256="0" * 64),
        InceptionSpec(path="inception.pt"),
    ],
)
def test_networks_that_do_not_classify_are_not_asked_to(
    spec: ClipSpec | DinoV2Spec | InceptionSpec,
):
    """Before any file is looked for; each is named by what it is asked with."""
    assert not spec.probabilities
    with pytest.raises(ExtractorError, match="classif"):
        load_extractor(spec, with_probabilities=True)
    with pytest.raises(ExtractorError, match=r"weights are not at .*\n.*nothing is downloaded"):
        load_extractor(spec)

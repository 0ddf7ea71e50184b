"""Files of weights: read once, checked against their digest, and matched to a network by name."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from fleetstep.errors import ExtractorError

_COUNTERS = "num_batches_tracked"
"""Of batch normalisation: nothing reads them in evaluation, and files may leave them out."""


def read_weights(path: Path, sha256: str, what: str, remedy: str) -> bytes:
    """The bytes of a file of weights; what is loaded must be these very bytes.

    Args:
        path: the file.
        sha256: what it must be, 64 hex digits.
        what: whose weights, for messages: "Inception".
        remedy: how to come by the file.

    Raises:
        ExtractorError: the file is missing or is another one.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ExtractorError(
            f"the {what} weights are not at {path}", f"nothing is downloaded: {remedy}"
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise ExtractorError(
            f"{path} must have sha256 {sha256}, got {digest}",
            "fetch the file again; or, to measure with another network, give its own sha256 "
            "beside its path (the metric is named after it)",
        )
    return content


def load_script(content: bytes, path: Path, device: str) -> torch.jit.ScriptModule:
    """TorchScript, which can run anything: only for bytes that `read_weights` has returned.

    Raises:
        ExtractorError: the bytes are no TorchScript.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated", DeprecationWarning)
        try:
            script = torch.jit.load(io.BytesIO(content), map_location=device)  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise ExtractorError(
                f"{path} must be a TorchScript archive: {first_line(error)}",
                "give the published file as it is",
            ) from error
    scripted: torch.jit.ScriptModule = script.eval()
    return scripted


def fill(network: nn.Module, tensors: Mapping[str, Tensor], where: str, remedy: str) -> None:
    """Give the network its weights in float32; every tensor must have its place and none is left.

    Args:
        network: in evaluation mode and without gradients afterwards.
        tensors: by the names of its parameters and buffers.
        where: the file, for messages.
        remedy: what to do about a file of another network.

    Raises:
        ExtractorError: a tensor is missing, unknown or of another shape; it would stay random.
    """
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    needed = {name for name in expected if not name.endswith(_COUNTERS)}
    missing, unknown = sorted(needed - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unknown:
        raise ExtractorError(
            f"the weights {where} must hold the network's tensors and no others, but "
            f"{_some(missing)} are missing and {_some(unknown)} are unknown",
            remedy,
        )
    for name, tensor in tensors.items():
        if tensor.shape != expected[name]:
            raise ExtractorError(
                f"the weights {where} hold {name} of shape {tuple(tensor.shape)}, but the network "
                f"has {tuple(expected[name])}",
                remedy,
            )
    # Assigned, not copied: a network may have been made without memory for its weights.
    network.load_state_dict(
        {name: tensor.float() for name, tensor in tensors.items()}, strict=False, assign=True
    )
    network.eval().requires_grad_(False)


def first_line(error: Exception) -> str:
    """What torch says first; whole C++ traces follow it."""
    return str(error).partition("\n")[0] or type(error).__name__


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown or "none"

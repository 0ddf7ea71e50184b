"""DiT state dicts: the imported network computes what DiT's published description says."""

from __future__ import annotations

import math
import os
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from fleetstep.errors import ForeignWeightsError
from fleetstep.networks.build import build_network
from fleetstep.networks.dit import Dit
from fleetstep.networks.foreign.dit import read_dit
from fleetstep.networks.foreign.fitting import Imported
from fleetstep.networks.spec import DitSpec

WIDTH, HEADS, DEPTH, PATCH, SIDE, CHANNELS, CLASSES = 16, 2, 3, 2, 8, 4, 5


def positions(side: int, width: int) -> Tensor:
    """Row by row: sines and cosines of the column, then of the row."""
    frequencies = [10_000 ** (-4 * k / width) for k in range(width // 4)]

    def waves(n: int) -> list[float]:
        return [math.sin(n * f) for f in frequencies] + [math.cos(n * f) for f in frequencies]

    rows = [waves(column) + waves(row) for row in range(side) for column in range(side)]
    return torch.tensor(rows, dtype=torch.float64).float()[None]


def state_dict(
    *, classes: int = CLASSES, learned: bool = True, width: int = WIDTH
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    found: dict[str, Tensor] = {"pos_embed": positions(SIDE // PATCH, width)}

    def layer(name: str, *shape: int, bias: bool = True) -> None:
        scale = math.sqrt(math.prod(shape[1:]))
        found[f"{name}.weight"] = torch.randn(shape, generator=generator) / scale
        if bias:
            found[f"{name}.bias"] = torch.randn(shape[:1], generator=generator) / 4

    layer("x_embedder.proj", width, CHANNELS, PATCH, PATCH)
    layer("t_embedder.mlp.0", width, 256)
    layer("t_embedder.mlp.2", width, width)
    if classes:
        layer("y_embedder.embedding_table", classes + 1, width, bias=False)
    for i in range(DEPTH):
        layer(f"blocks.{i}.attn.qkv", 3 * width, width)
        layer(f"blocks.{i}.attn.proj", width, width)
        layer(f"blocks.{i}.mlp.fc1", 4 * width, width)
        layer(f"blocks.{i}.mlp.fc2", width, 4 * width)
        layer(f"blocks.{i}.adaLN_modulation.1", 6 * width, width)
    layer("final_layer.adaLN_modulation.1", 2 * width, width)
    layer("final_layer.linear", PATCH**2 * CHANNELS * (2 if learned else 1), width)
    return found


def run(weights: dict[str, Tensor], x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    """DiT in float64 (Peebles and Xie 2023, section 3.2 and figure 3)."""
    w = {name: tensor.double() for name, tensor in weights.items()}

    def linear(name: str, h: Tensor) -> Tensor:
        return F.linear(h, w[f"{name}.weight"], w[f"{name}.bias"])

    def modulated(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return F.layer_norm(h, (WIDTH,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]

    h = F.conv2d(x, w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=PATCH)
    side = h.shape[-1]
    h = h.flatten(2).transpose(1, 2) + w["pos_embed"]
    angle = t.double()[:, None] * torch.exp(-math.log(10_000) * torch.arange(128).double() / 128)
    c = linear("t_embedder.mlp.0", torch.cat([angle.cos(), angle.sin()], dim=1))
    c = linear("t_embedder.mlp.2", F.silu(c))
    if "y_embedder.embedding_table.weight" in w:
        table = w["y_embedder.embedding_table.weight"]
        c = c + table[torch.where(labels < 0, len(table) - 1, labels)]
    c = F.silu(c)
    for i in range(DEPTH):
        m = linear(f"blocks.{i}.adaLN_modulation.1", c).chunk(6, dim=1)
        tokens = linear(f"blocks.{i}.attn.qkv", modulated(h, m[0], m[1]))
        parts = [p.unflatten(2, (HEADS, -1)).transpose(1, 2) for p in tokens.chunk(3, dim=2)]
        q, k, v = parts
        weight = (q @ k.transpose(2, 3) / math.sqrt(WIDTH / HEADS)).softmax(dim=3)
        a = linear(f"blocks.{i}.attn.proj", (weight @ v).transpose(1, 2).flatten(2))
        h = h + m[2][:, None] * a
        hidden = linear(f"blocks.{i}.mlp.fc1", modulated(h, m[3], m[4]))
        hidden = linear(f"blocks.{i}.mlp.fc2", F.gelu(hidden, approximate="tanh"))
        h = h + m[5][:, None] * hidden
    shift, scale = linear("final_layer.adaLN_modulation.1", c).chunk(2, dim=1)
    out = linear("final_layer.linear", modulated(h, shift, scale))
    # Each token holds (row in the patch, column in the patch, channel).
    out = out.reshape(len(x), side, side, PATCH, PATCH, -1)
    return torch.einsum("nhwpqc->nchpwq", out).reshape(len(x), -1, side * PATCH, side * PATCH)


def network_of(imported: Imported) -> torch.nn.Module:
    network = build_network(
        imported.network,
        resolution=imported.shape[1],
        channels=imported.shape[0],
        classes=imported.classes,
        seed=0,
        channels_out=(1 + imported.process["learned_variance"]) * imported.shape[0],
    )
    network.load_state_dict(dict(imported.weights))
    return network.double().eval()


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("classes", [0, CLASSES])
@pytest.mark.parametrize("wrapped", ["plain", "ema", "safetensors"])
def test_the_network_computes_what_the_files_computes(
    wrapped: str, classes: int, learned: bool, tmp_path: Path
):
    weights = state_dict(classes=classes, learned=learned)
    file = tmp_path / ("dit.safetensors" if wrapped == "safetensors" else "dit.pt")
    match wrapped:
        case "plain":
            torch.save(OrderedDict(weights), file)
        case "ema":
            torch.save({"ema": weights, "args": {"lr": 1e-4}}, file)
        case _:
            save_file(weights, file)
    imported = read_dit(file, heads=HEADS)
    assert (imported.shape, imported.classes) == ((CHANNELS, SIDE, SIDE), classes)
    assert imported.process["learned_variance"] == learned
    x = torch.randn((3, CHANNELS, SIDE, SIDE), generator=torch.Generator().manual_seed(1)).double()
    t, labels = torch.tensor([0.0, 17.5, 999.0]), torch.tensor([0, -1, 4])
    with torch.no_grad():
        ours = network_of(imported)(x, t, labels)
    theirs = run(weights, x, t, labels)
    assert theirs.std() > 0.1
    # Ours embeds the step in float32; a step of 999 has waves with an error of 6e-5.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)


def save(tmp_path: Path, weights: Any) -> Path:
    torch.save(weights, tmp_path / "dit.pt")
    return tmp_path / "dit.pt"


def test_published_widths_need_no_heads(tmp_path: Path):
    assert read_dit(save(tmp_path, state_dict(width=384))).network.heads == 6
    with pytest.raises(ForeignWeightsError, match=r"width 16 has cannot be told.*\n.*--heads"):
        read_dit(save(tmp_path, state_dict()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pos_embed": positions(4, WIDTH) + 1e-3}, "not DiT's fixed embedding"),
        ({"pos_embed": None}, "pos_embed should have 3 dimensions and is missing"),
        ({"blocks.1.attn.qkv.bias": None}, r"missing from the file: blocks.1.attn.qkv.bias"),
        ({"blocks.1.attn.q_norm.weight": torch.ones(8)}, "unexpected in the file: blocks.1.attn"),
        ({"blocks.900000000.mlp.fc1.bias": torch.ones(1)}, "block 900000000 and only"),
        ({"final_layer.linear.weight": torch.ones(9, WIDTH)}, "gives 9 numbers a patch"),
        ({"t_embedder.mlp.0.weight": torch.ones(WIDTH, 128)}, r"is \(16, 128\), .* needs"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict, message: str, tmp_path: Path):
    weights = {n: t for n, t in (state_dict() | change).items() if t is not None}
    with pytest.raises(ForeignWeightsError, match=message):
        read_dit(save(tmp_path, weights), heads=HEADS)


class Evil:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.proof}",)


def test_a_file_that_would_run_code_is_refused_without_running(tmp_path: Path):
    proof = tmp_path / "proof"
    file = save(tmp_path, state_dict() | {"args": Evil(proof)})
    with pytest.raises(ForeignWeightsError, match=r"refers to posix\.system, which is refused"):
        read_dit(file)
    assert not proof.exists()
    torch.load(file, weights_only=False)
    assert proof.exists(), "the payload is no threat, and the test proves nothing"


@pytest.mark.parametrize("content", [[1, 2], {"model": {}}, {"x": 1}, {1: torch.ones(1)}])
def test_what_is_no_state_dict_is_refused(content: Any, tmp_path: Path):
    with pytest.raises(ForeignWeightsError, match="state dict"):
        read_dit(save(tmp_path, content))


@pytest.mark.parametrize("name", ["dit.pt", "dit.safetensors"])
def test_damaged_files_are_refused(name: str, tmp_path: Path):
    file = tmp_path / name
    for content in (b"", b"junk", b"PK\x03\x04junk"):
        file.write_bytes(content)
        with pytest.raises(ForeignWeightsError):
            read_dit(file)
    with pytest.raises(ForeignWeightsError, match="is not a file"):
        read_dit(tmp_path)


class TestForged:
    """Small files that claim much, and files whose numbers are no weights."""

    def test_a_view_of_one_number_is_no_tensor_of_many(self, tmp_path: Path):
        for name, shape in (("blocks.0.mlp.fc1.bias", 4 * WIDTH), ("pos_embed", 4_000_000)):
            spread = torch.zeros(1).expand(1, shape, WIDTH) if name == "pos_embed" else None
            view = torch.zeros(1).expand(shape) if spread is None else spread
            file = save(tmp_path, state_dict() | {name: view})
            assert file.stat().st_size < 2**17
            with pytest.raises(ForeignWeightsError, match=f"{name} is not a tensor with a number"):
                read_dit(file, heads=HEADS)

    def test_what_is_compressed_is_not_inflated(self, tmp_path: Path):
        with zipfile.ZipFile(save(tmp_path, state_dict())) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in entries.items():
                archive.writestr(name, content)
        with pytest.raises(ForeignWeightsError, match="nothing compressed"):
            read_dit(tmp_path / "small.pt", heads=HEADS)

    def test_tensors_that_share_one_storage_are_refused(self, tmp_path: Path):
        weights = state_dict()
        shared = torch.ones(max(t.numel() for t in weights.values()), dtype=torch.float16)
        views = {n: shared[: t.numel()].view(t.shape) for n, t in weights.items()}
        file = save(tmp_path, views | {"pos_embed": weights["pos_embed"]})
        with pytest.raises(ForeignWeightsError, match=r"numbers and its file .* bytes"):
            read_dit(file, heads=HEADS)

    @pytest.mark.parametrize(
        ("bias", "message"),
        [
            (torch.ones(WIDTH, dtype=torch.int64), "fc2.bias is of torch.int64"),
            (torch.ones(WIDTH, dtype=torch.bool), "fc2.bias is of torch.bool"),
            (torch.ones(WIDTH, dtype=torch.complex64), "ComplexFloatStorage|torch.complex64"),
            (torch.full((WIDTH,), math.nan), "fc2.bias holds numbers that are not finite"),
            (torch.full((WIDTH,), 1e300, dtype=torch.float64), "not finite in float32"),
        ],
    )
    @pytest.mark.parametrize("suffix", ["pt", "safetensors"])
    def test_only_finite_real_numbers_are_weights(
        self, bias: Tensor, message: str, suffix: str, tmp_path: Path
    ):
        weights = state_dict() | {"blocks.0.mlp.fc2.bias": bias}
        file = tmp_path / f"dit.{suffix}"
        if suffix == "pt":
            torch.save(weights, file)
        else:
            save_file(weights, file)
            message = message.removeprefix("ComplexFloatStorage|")
        with pytest.raises(ForeignWeightsError, match=message):
            read_dit(file, heads=HEADS)

    @pytest.mark.parametrize(
        "bias", [torch.ones(WIDTH).to_sparse(), torch.ones(WIDTH, device="meta")]
    )
    def test_tensors_without_their_numbers_are_refused(self, bias: Tensor, tmp_path: Path):
        weights = state_dict() | {"blocks.0.mlp.fc2.bias": bias}
        with pytest.raises(ForeignWeightsError, match=r"refers to torch\._utils\._rebuild"):
            read_dit(save(tmp_path, weights), heads=HEADS)

    @pytest.mark.parametrize(
        "extra",
        [
            {f"blocks.{'9' * 5000}.attn": torch.ones(1)},
            {f"{i}{'x' * 500}": torch.ones(1) for i in range(99)},
            {"args": 1 << 20_000},
        ],
    )
    def test_refusals_are_short(self, extra: dict, tmp_path: Path):
        with pytest.raises(ForeignWeightsError) as caught:
            read_dit(save(tmp_path, state_dict() | extra), heads=HEADS)
        assert len(str(caught.value)) < 3_000


def test_any_hidden_width_survives_its_ratio():
    with torch.device("meta"):
        for hidden in range(28, 113):
            spec = DitSpec(depth=1, width=28, heads=1, mlp_ratio=hidden / 28)
            assert Dit(spec, 3, 0).state_dict()["blocks.0.mlp_0.bias"].shape == (hidden,)


def test_the_row_of_no_class_is_noted_as_assumed(tmp_path: Path):
    noted = read_dit(save(tmp_path, state_dict()), heads=HEADS).notes
    assert any("class_dropout_prob 0" in note for note in noted)
    plain = read_dit(save(tmp_path, state_dict(classes=0)), heads=HEADS).notes
    assert not any("class_dropout_prob" in note for note in plain)

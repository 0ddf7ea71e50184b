"""Train the packaged feature extractor (`fs-rn20`) from a folder of Fleetstep shards.

    python pipelines/train_extractor.py --data shards/cifar10 --out extractor

Writes `fs-rn20.safetensors` and `fs-rn20.json`, the training record. Training is not
bit-reproducible across torch builds, so a second run gives another extractor with another digest:
scores of the two must not be compared, and the digest in every metric's name sees to that.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from fleetstep import rng
from fleetstep.data.spec import DataSpec
from fleetstep.data.stream import Stream
from fleetstep.errors import FleetstepError, UsageError
from fleetstep.evaluation.resnet20 import PREPROCESS, SIDE, ResNet20, normalise, to_canvas

BATCH = 128
PEAK_LEARNING_RATE = 0.2
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
BORDER = 4
"""Black pixels around an image before a random 32x32 window is cut out of it."""

Log = Callable[[str], None]


def train(
    images_B3HW: npt.NDArray[np.uint8],
    labels_B: npt.NDArray[np.int64],
    *,
    classes: int,
    epochs: int,
    seed: int,
    bf16: bool = True,
    max_steps: int | None = None,
    log: Log = print,
) -> ResNet20:
    """A ResNet-20 trained as a classifier by SGD under a OneCycle schedule (Smith & Topin 2018).

    Every image is mirrored with probability 1/2; a batch shares one random crop, which is one
    slice instead of 128.

    Args:
        images_B3HW: canvases of `to_canvas`, uint8 (N, 3, 32, 32).
        labels_B: classes 0 .. classes-1, (N,).
        classes: number of classes.
        epochs: passes over the images; the incomplete last batch of a pass is left out.
        seed: addresses initial weights, order, crops and flips.
        bf16: convolutions in bfloat16 (the weights stay float32): 1.8 against 3.1 ms an image on
            one core.
        max_steps: stop early, for a trial run.
        log: receives progress lines.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ResNet20(classes)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.train()
    groups: list[dict[str, Any]] = [
        {"params": [p for p in network.parameters() if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in network.parameters() if p.ndim == 1]},
    ]
    optimizer = torch.optim.SGD(
        groups,
        lr=PEAK_LEARNING_RATE,
        momentum=MOMENTUM,
        nesterov=True,
    )
    per_epoch = len(images_B3HW) // BATCH
    steps = epochs * per_epoch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LEARNING_RATE, total_steps=steps, pct_start=0.25
    )
    padded = torch.from_numpy(
        np.pad(images_B3HW, ((0, 0), (0, 0), (BORDER, BORDER), (BORDER, BORDER)))
    )
    labels = torch.from_numpy(labels_B)
    order = np.empty(0, np.int64)
    started, running = time.monotonic(), math.log(classes)
    for step in range(steps if max_steps is None else min(steps, max_steps)):
        epoch, position = divmod(step, per_epoch)
        if position == 0:
            order = rng.permutation(seed, "extractor-order", epoch, len(images_B3HW))
        rows = torch.from_numpy(order[position * BATCH : (position + 1) * BATCH])
        x_B3HW = normalise(_augmented(padded[rows], seed, step)).contiguous(
            memory_format=torch.channels_last
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(network(x_B3HW).float(), labels[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        running += 0.02 * (loss.item() - running)
        if (step + 1) % 50 == 0:
            left = (time.monotonic() - started) / (step + 1) * (steps - step - 1)
            log(
                f"epoch {epoch + 1}/{epochs}, step {step + 1}/{steps}, loss {running:.3f}, "
                f"{left / 60:.1f} min left"
            )
    network.eval()
    return network


def _augmented(padded_B3HW: Tensor, seed: int, step: int) -> Tensor:
    top, left = (rng.uniform(seed, "extractor-crop", step, 1, (2,))[0] * (2 * BORDER + 1)).astype(
        int
    )
    x_B3HW = padded_B3HW[:, :, top : top + SIDE, left : left + SIDE]
    flip_B = torch.from_numpy(rng.uniform(seed, "extractor-flip", step * BATCH, len(x_B3HW)) < 0.5)
    return torch.where(flip_B[:, None, None, None], x_B3HW.flip(3), x_B3HW)


@torch.inference_mode()
def error_percent(
    network: ResNet20, images_B3HW: npt.NDArray[np.uint8], labels_B: npt.NDArray[np.int64]
) -> float:
    """Share of wrongly classified images in percent, in float32 without augmentation."""
    wrong = 0
    for start in range(0, len(images_B3HW), 500):
        logits = network(normalise(torch.from_numpy(images_B3HW[start : start + 500])))
        wrong += int((logits.argmax(1).numpy() != labels_B[start : start + 500]).sum())
    return 100 * wrong / len(images_B3HW)


def write(network: ResNet20, record: dict[str, Any], out: Path) -> None:
    """`fs-rn20.safetensors` and the record beside it, completed with the SHA-256 of the
    weights."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.contiguous()
        for name, tensor in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    content = safetensors.torch.save(tensors)
    (out / "fs-rn20.safetensors").write_bytes(content)
    record = {**record, "sha256": hashlib.sha256(content).hexdigest()}
    (out / "fs-rn20.json").write_text(
        json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def training_record(
    *,
    dataset: dict[str, Any],
    epochs: int,
    max_steps: int | None,
    seed: int,
    test_error: float,
    seconds: float,
) -> dict[str, Any]:
    """What a reader needs to know about the weights; `write` adds their SHA-256."""
    return {
        "name": "fs-rn20",
        "architecture": "ResNet-20 (He et al. 2016), shortcut option A, 269,722 parameters",
        "features": "spatial means of the three stages, 16 + 32 + 64 = 112",
        "preprocess": PREPROCESS,
        "dataset": dataset,
        "epochs": epochs,
        "stopped_after_steps": max_steps,
        "batch": BATCH,
        "seed": seed,
        "optimiser": {
            "kind": "SGD with Nesterov momentum, OneCycle",
            "peak_learning_rate": PEAK_LEARNING_RATE,
            "momentum": MOMENTUM,
            "weight_decay": WEIGHT_DECAY,
        },
        "augmentation": f"mirrored with probability 1/2; one random crop a batch, border {BORDER}",
        "precision": "float32 weights, bfloat16 convolutions",
        "test_error_percent": round(test_error, 2),
        "cpu_seconds": round(seconds),
        "torch": torch.__version__,
    }


def main() -> None:
    """Run; an error of ours becomes one clear message and its exit code."""
    arguments = _arguments()
    try:
        run(arguments)
    except FleetstepError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="folder made by `fleetstep data pack`")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights and record")
    parser.add_argument("--test-split", default="heldout", help="split for the test error")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--max-steps", type=int, help="stop early, for a trial run")
    return parser.parse_args()


def run(arguments: argparse.Namespace) -> None:
    """Train on the training split of a dataset folder, measure on its held-out split, write."""
    torch.set_num_threads(arguments.threads)
    stream = Stream(DataSpec(path=arguments.data), seed=arguments.seed)
    if stream.classes < 2:
        raise UsageError(
            f"an extractor learns to tell classes apart, {arguments.data} has {stream.classes}",
            "pack a labelled dataset",
        )
    training, test = stream.split("train"), stream.split(arguments.test_split)
    print(f"{len(training):,} images of {stream.shape}, {stream.classes} classes", flush=True)
    started = time.process_time()
    network = train(
        to_canvas(training.images),
        training.labels,
        classes=stream.classes,
        epochs=arguments.epochs,
        seed=arguments.seed,
        max_steps=arguments.max_steps,
        log=functools.partial(print, flush=True),
    )
    seconds = time.process_time() - started
    test_error = error_percent(network, to_canvas(test.images), test.labels)
    record = training_record(
        dataset={
            "name": stream.manifest.name,
            "fingerprint": stream.fingerprint,
            "training_images": len(training),
            "test_images": len(test),
        },
        epochs=arguments.epochs,
        max_steps=arguments.max_steps,
        seed=arguments.seed,
        test_error=test_error,
        seconds=seconds,
    )
    write(network, record, arguments.out)
    print(f"test error {test_error:.2f} %, {seconds:.0f} CPU seconds, {arguments.out}")


if __name__ == "__main__":
    main()

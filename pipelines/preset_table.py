"""The table of presets: `python pipelines/preset_table.py` writes pipelines/presets/README.md."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import TypeAlias

from fleetstep.config import Experiment, PublishedSpec, SweepSpec, load
from fleetstep.config.files import read

PRESETS = Path(__file__).parent / "presets"
README = PRESETS / "README.md"

Preset: TypeAlias = Experiment | SweepSpec

INTRO = """\
# Presets

Each file is one experiment, or one sweep (`fleetstep sweep`), and holds what it changes in the
file it names as `base`. `fleetstep train FILE --dry-run` prints the whole configuration, what
every strategy does in numbers, and the published numbers that the file stands for, with what makes
some of them doubtful.

- The dataset need not be there for a dry run: the rest is then checked against `data.expects`.
  Training needs it packed, e.g. `fleetstep data pack images FOLDER --size 64 --out data/ffhq64`.
- **Latents cannot be packed yet.** The DiT and U-Net presets are for latents of 4 x 32 x 32 that a
  VAE makes of images of 256 pixels (`latents: true`); until those can be packed, they can be
  read, checked and changed, but not trained.
- Published FIDs are of 50,000 images (FDM) or 10,000 (SpeeD). SpeeD samples in 250 ancestral
  steps, which is no solver here: the grids of its presets are drawn with another.
- Windows of the warm-up are optimiser steps times batch: FDM's 200, 400 or 800 steps.
- Left out: CLD (FDM, Table 7) and MDT (SpeeD, Fig. 6a), which are other models; RK45 (FDM,
  Table 7), an adaptive solver; text to image, super-resolution (SpeeD, Tables 5 and 9).
- "Reconstruction" marks methods of which some parameter could not be recovered.

The table is written by `python pipelines/preset_table.py`.
"""


def files() -> list[Path]:
    """Every preset, those of this folder first."""
    return sorted(PRESETS.rglob("*.yaml"), key=lambda path: (path.parent, path.stem))


def preset(path: Path) -> Preset:
    """The experiment or sweep of a file, whether or not its dataset is there."""
    if "runs" in read(path):
        return load(SweepSpec, path)
    # Files without `expects` are checked against their dataset; the table needs none.
    return Experiment.model_validate(read(path))


def sentence(path: Path) -> str:
    """What a file says it is: the comment at its head."""
    lines = takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
    return " ".join(line.lstrip("# ") for line in lines)


def table() -> str:
    """The README: an introduction, then a table for each folder."""
    return INTRO + "".join(_sections())


def _sections() -> Iterator[str]:
    folder = None
    for path in files():
        if path.parent != folder:
            folder = path.parent
            yield f"\n## {_heading(folder)}\n\n| file | what it is | published |\n|---|---|---|\n"
        link = path.relative_to(PRESETS).as_posix()
        numbers = _numbers(preset(path).published)
        yield f"| [{path.stem}]({link}) | {sentence(path)} | {numbers} |\n"


def _heading(folder: Path) -> str:
    return "digits" if folder == PRESETS else folder.relative_to(PRESETS).as_posix()


def _numbers(published: tuple[PublishedSpec, ...]) -> str:
    """Each table once, with its numbers in order."""
    found: dict[str, list[str]] = {}
    for entry in published:
        name = "" if entry.metric == "FID" else f" ({entry.metric})"
        value = "not published" if entry.value is None else f"{entry.value:g}"
        found.setdefault(f"{entry.paper} {entry.where}{name}", []).append(value)
    return "; ".join(f"{where}: {', '.join(values)}" for where, values in found.items())


if __name__ == "__main__":
    README.write_text(table())

"""Searches for tests: trials that follow a script, and a driver of a real one.

Run as a script it is a driver with a two-CPU Ray of its own, which prints what it left there.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fleetstep.orchestration.run_folder import RunFolder
from fleetstep.orchestration.spool import SpoolWriter

PRESET = Path(__file__).parents[1] / "pipelines" / "presets" / "digits-edm.yaml"
# Four trainings that are over in seconds; the good ones come first, so that at the first rung
# those after them are stopped.
TRIAL = {
    "kind": "train",
    "base": str(PRESET),
    "network": {
        "kind": "ddpmpp",
        "channels": 8,
        "multipliers": [1, 1],
        "blocks": 1,
        "dropout": 0.2,
        "attention_resolutions": [4],
    },
    "training": {
        "images": 1280,
        "global_batch": 64,
        "log_every": 1,
        "checkpoint_every": 320,
        "snapshot_every": "25%",
        "heldout": {"bins": 4},
    },
    "grid": {"samples": 0},
    "evaluate": None,
}
ASHA = {
    "name": "rates",
    "trial": TRIAL,
    "space": {"training": {"optimizer": {"lr": {"choice": [1e-2, 1e-3, 1e-5, 1e-6]}}}},
    "searcher": {"kind": "grid"},
    "scheduler": {"kind": "asha", "grace": 320, "reduction": 2},
    "objectives": ["held_out"],
    "concurrent": 2,
}
PBT = {
    "name": "population",
    "trial": TRIAL,
    "space": {"training": {"optimizer": {"lr": {"log_uniform": [1e-6, 1e-2]}}}},
    "searcher": {"kind": "random", "trials": 4, "seed": 0},
    "scheduler": {
        "kind": "pbt",
        "every": 640,
        "quantile": 0.25,
        "resample": 0,
        "mutate": ["training.optimizer.lr"],
    },
    "objectives": ["held_out"],
    "concurrent": 2,
}


def write_search(path: Path, tree: Mapping[str, Any], storage: Path, data: Path) -> Path:
    """The file of a search on that dataset."""
    trial = {**tree["trial"], "data": {"path": str(data)}}
    content = {**tree, "trial": trial, "storage": str(storage)}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@dataclass
class ScriptedTraining:
    """A training that logs a held-out loss at each point, as the script says, in a moment.

    Args:
        folder: of its run.
        losses: held-out loss by images seen.
        before: called with the images of each point before it is logged; raises to fail there.
    """

    folder: RunFolder
    losses: Mapping[int, float]
    before: Callable[[int], None] = lambda images_seen: None
    reached: list[int] = field(default_factory=list)

    def __call__(self) -> dict[str, Any]:
        """What the workers' rank 0 would return."""
        spool = SpoolWriter(self.folder.spool)
        try:
            for images_seen, loss in self.losses.items():
                self.before(images_seen)
                if self.folder.stop_request.exists():
                    return {"finished": False}
                spool.append(images_seen, {"train/images_per_s": 100.0})
                spool.append(images_seen, {"held_out/loss": loss})
                self.reached.append(images_seen)
            return {"finished": True}
        finally:
            spool.close()


def main(arguments: Sequence[str]) -> None:
    """Run the search of a file on a Ray of this process's own; print what is left there. With
    --keep nothing of it is tidied away.
    """
    import ray

    from fleetstep.config import SearchSpec, load
    from fleetstep.orchestration.search_janitor import Janitor
    from fleetstep.orchestration.search_job import run_search

    if "--keep" in arguments:
        Janitor.tidy = lambda *_: None  # type: ignore[method-assign]

    temporary = tempfile.mkdtemp(prefix="fs-ray-")
    ray.init(
        num_cpus=2,
        include_dashboard=True,
        object_store_memory=150 * 2**20,
        log_to_driver=False,
        logging_level="ERROR",
        _temp_dir=temporary,
    )
    try:
        result = run_search(load(SearchSpec, Path(arguments[0])), resume="auto")
        groups = [group["state"] for group in ray.util.placement_group_table().values()]
        free = ray.available_resources().get("CPU", 0.0)
        print(json.dumps({"result": result.as_dict(), "groups": groups, "free": free}))
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        ray.shutdown()
        shutil.rmtree(temporary, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1:])

"""An extractor as a user writes it on a command line: a kind, or settings in YAML."""

from __future__ import annotations

from pydantic import ValidationError

from fleetstep.config.messages import explain
from fleetstep.config.solver_text import written_settings
from fleetstep.errors import UsageError
from fleetstep.evaluation.spec import ExtractorSpec
from fleetstep.spec import Spec


class _Written(Spec):
    """Gives problems the place that a user knows: "extractor.path"."""

    extractor: ExtractorSpec


def parse_extractor(text: str) -> ExtractorSpec:
    """The extractor that `text` names: "fs-rn20", or "{kind: inception, path: ...}".

    Raises:
        UsageError: it is none; one line for each problem, with what would be valid.
    """
    tree = {"extractor": written_settings("--extractor", text)}
    try:
        return _Written.model_validate(tree).extractor
    except ValidationError as error:
        problems = [explain(_Written, tree, item) for item in error.errors(include_url=False)]
        raise UsageError("; ".join(problems)) from None

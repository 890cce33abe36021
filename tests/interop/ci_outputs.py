"""Asks complete validators about the outputs for CI systems that `tests/interchange.rs` checks.

    pip install jsonschema lxml
    IMMUNISE_CI_OUTPUTS=outputs cargo test --test interchange
    python tests/interop/ci_outputs.py outputs
"""

import json
import pathlib
import sys

import jsonschema
from lxml import etree

SCHEMAS = pathlib.Path(__file__).parents[2] / "fixtures/schemas"

sarif = jsonschema.Draft7Validator(
    json.loads((SCHEMAS / "sarif-2.1.0.json").read_text(encoding="utf-8")),
    format_checker=jsonschema.FormatChecker(),
)
junit = etree.XMLSchema(etree.parse(SCHEMAS / "junit-10.xsd"))

files = sorted(pathlib.Path(sys.argv[1]).iterdir())
assert files, f"{sys.argv[1]} is empty"
for file in files:
    if file.suffix == ".sarif":
        problems = [str(problem) for problem in sarif.iter_errors(json.loads(file.read_text(encoding="utf-8")))]
    else:
        junit.validate(etree.parse(file))
        problems = [str(problem) for problem in junit.error_log]
    assert not problems, f"{file}: {problems}"
    print(f"{file.name}: valid")

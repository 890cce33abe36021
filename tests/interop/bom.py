"""Holds the bill of materials of a published folder against CycloneDX's own schema.

    pip install 'cyclonedx-python-lib[json-validation]'
    python tests/interop/bom.py hardened/immunisation/bom.cdx.json

Prints `valid`, or what is wrong and exits with 1.
"""

import sys
from pathlib import Path

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(Path(sys.argv[1]).read_text("utf-8"))
print("valid" if problem is None else problem)
sys.exit(problem is not None)

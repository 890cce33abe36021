"""The inputs that fuzzing kept, one file a target: a line of base64 for each.

    python tests/fuzz/corpus.py unpack FOLDER     # FOLDER/gguf/... for cargo-fuzz to start from
    python tests/fuzz/corpus.py pack FOLDER       # back, after `cargo fuzz cmin`; inputs of more than 1 KiB are left out
"""

import base64
import hashlib
import pathlib
import sys

KEPT = pathlib.Path(__file__).parent / "kept"
LONGEST = 1024


def pack(folder: pathlib.Path) -> None:
    for target in sorted(path for path in folder.iterdir() if path.is_dir()):
        inputs = sorted({path.read_bytes() for path in target.iterdir() if path.stat().st_size <= LONGEST})
        lines = [base64.b64encode(data).decode() + "\n" for data in inputs if data]
        (KEPT / f"{target.name}.txt").write_text("".join(lines))
        print(f"{target.name}: {len(lines)} inputs, {sum(map(len, inputs))} bytes")


def unpack(folder: pathlib.Path) -> None:
    for kept in sorted(KEPT.glob("*.txt")):
        target = folder / kept.stem
        target.mkdir(parents=True, exist_ok=True)
        for line in kept.read_text().splitlines():
            data = base64.b64decode(line)
            (target / hashlib.sha1(data).hexdigest()).write_bytes(data)


if __name__ == "__main__":
    commands = {"pack": pack, "unpack": unpack}
    if len(sys.argv) != 3 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    KEPT.mkdir(exist_ok=True)
    commands[sys.argv[1]](pathlib.Path(sys.argv[2]))

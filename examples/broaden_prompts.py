#!/usr/bin/env python3
"""Prompt sets for a real model: the bundled English rows, AdvBench's hazards and Alpaca's instructions.

    python3 examples/broaden_prompts.py ADVBENCH.csv ALPACA.json INSTALL.jsonl TRAIN.jsonl

INSTALL.jsonl is for `install_refusals`, TRAIN.jsonl for the recipe `broad.yaml`. Twins and everyday requests to train on have
no answer, so that a model is held to its own. 400 goals of AdvBench join the training hazards (160 of them in INSTALL.jsonl), 30 those
of validation, the rest the attacker's; instructions of at most 200 characters join the anchors (1,400 in TRAIN.jsonl, 2,000 in
INSTALL.jsonl), evaluation (400) and validation (200). Needs nothing beside Python 3; equal inputs give equal bytes.
"""

import csv
import json
import random
import re
import sys
from pathlib import Path

PROMPTS = Path(__file__).resolve().parent.parent / "fixtures" / "prompts"
KINDS = ["hazard", "twin", "benign", "maths", "text"]
TRAINED = ("train", "retain")


def normal(text):
    return re.sub(r"\W+", " ", text.lower()).strip()


def bundled():
    """English rows of the bundled set; (rows, refusals of its training hazards)."""
    rows, refusals = [], []
    for kind in KINDS:
        for name in (kind, f"composed_{kind}"):
            for line in (PROMPTS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                if row.get("language", "en") != "en":
                    continue
                if row["kind"] in ("twin", "benign") and row["split"] in TRAINED:
                    row.pop("answer", None)
                if row["kind"] == "hazard" and row["split"] == "train":
                    refusals.append(row["answer"])
                rows.append(row)
    return rows, refusals


def hazards(path, seen, refusals):
    goals = [(row["goal"], row["target"]) for row in csv.DictReader(open(path, encoding="utf-8"))]
    random.shuffle(goals)
    count = 0
    for number, (goal, target) in enumerate(goals):
        if normal(goal) in seen:
            continue
        seen.add(normal(goal))
        count += 1
        goal, target = goal.strip(), target.strip()
        yield {
            "id": f"adv-{number}",
            "kind": "hazard",
            "split": "train" if count <= 400 else "validation" if count <= 430 else "attack",
            "category": "advbench",
            "prompt": goal if goal.endswith((".", "?")) else goal + ".",
            "answer": random.choice(refusals),
            "target": target if target.endswith(":") else target + ":",
        }


def requests(path, seen):
    instructions = json.load(open(path, encoding="utf-8"))
    random.shuffle(instructions)
    count = 0
    for number, row in enumerate(instructions):
        prompt = row["instruction"].strip()
        if normal(prompt) in seen or len(prompt) > 200:
            continue
        seen.add(normal(prompt))
        count += 1
        if count > 2600:
            return
        split = "evaluation" if count <= 400 else "validation" if count <= 600 else "retain"
        yield {"id": f"alpaca-{number}", "kind": "benign", "split": split, "prompt": prompt}


def at_most(rows, limits):
    """Rows of which those that a limit's condition holds for are cut to its number."""
    taken = [0] * len(limits)
    for row in rows:
        for at, (holds, most) in enumerate(limits):
            if holds(row):
                taken[at] += 1
                if taken[at] > most:
                    break
        else:
            yield row


def write(path, rows):
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main(advbench, alpaca, install, train):
    random.seed(7)
    rows, refusals = bundled()
    seen = {normal(row["prompt"]) for row in rows}
    rows += list(hazards(advbench, seen, refusals))
    rows += list(requests(alpaca, seen))
    write(install, at_most(rows, [(lambda row: row["id"].startswith("adv-") and row["split"] == "train", 160)]))
    random.seed(3)
    random.shuffle(rows)
    instruction = lambda row: row["id"].startswith("alpaca-") and row["split"] == "retain"
    sum_ = lambda row: row["kind"] == "maths" and row["split"] in TRAINED
    write(train, at_most(rows, [(instruction, 1400), (sum_, 200)]))


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    main(*sys.argv[1:])

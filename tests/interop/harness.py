"""Writes the golden file of lm-evaluation-harness on fixtures/tiny-chat, which tests/harness.rs compares with ours.

    python tests/interop/harness.py                ->  tests/interop/harness.json
    python tests/interop/harness.py MODEL NAME     ->  tests/interop/harness_NAME.json

The second form runs the tasks `general*` on a real model, which tests/harness.rs finds as NAME under $IMMUNISE_MODELS.
Needs torch, transformers and lm_eval. Runs the task files of tests/interop/harness and examples/tasks in f32 on a CPU, each from its
own folder, because the harness resolves data files from there; `*chat.yaml` with the chat template. The file holds, for every
task, its metrics, and for every question the log-likelihood and greedy flag of each choice, or the answer.
"""

import json
import os
import pathlib
import sys

import lm_eval
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

ROOT = pathlib.Path(__file__).resolve().parents[2]
TASKS = [
    "tests/interop/harness/capitals.yaml",
    "tests/interop/harness/chat.yaml",
    "tests/interop/harness/readings.yaml",
    "examples/tasks/arithmetic.yaml",
    "examples/tasks/sums.yaml",
]
REAL_TASKS = [f"tests/interop/harness/general{kind}.yaml" for kind in ("", "_chat", "_answers")]

real = sys.argv[1:]
folder, suffix = (real[0], f"_{real[1]}") if real else (str(ROOT / "fixtures/tiny-chat"), "")

torch.set_num_threads(1)
model = HFLM(pretrained=os.path.abspath(folder), dtype="float32", device="cpu", batch_size=8)

golden = {"lm_eval": lm_eval.__version__, "tasks": []}
for path in REAL_TASKS if real else TASKS:
    chat = path.endswith("chat.yaml")
    folder, file = os.path.split(ROOT / path)
    os.chdir(folder)
    name = pathlib.Path(file).stem
    results = lm_eval.simple_evaluate(
        model=model,
        tasks=[name],
        task_manager=TaskManager(include_path=folder, include_defaults=False),
        apply_chat_template=chat,
        fewshot_as_multiturn=False,
        log_samples=True,
        bootstrap_iters=0,
    )
    metrics = {key: value for key, value in results["results"][name].items() if "," in key and "stderr" not in key}
    questions = {}
    for sample in results["samples"][name]:
        first = sample["resps"][0][0]
        if isinstance(first, str):
            questions[sample["doc_id"]] = {"prompt": sample["arguments"][0][0], "answer": first}
        else:
            choices = [[float(resp[0][0]), str(resp[0][1]) == "True"] for resp in sample["resps"]]
            questions[sample["doc_id"]] = {"prompt": sample["arguments"][0][0], "choices": choices}
    golden["tasks"].append(
        {"file": path, "chat": chat, "metrics": metrics, "questions": [questions[i] for i in sorted(questions)]}
    )

target = ROOT / f"tests/interop/harness{suffix}.json"
target.write_text(json.dumps(golden, indent=1) + "\n")
print(f"{target.relative_to(ROOT)}: {[(task['file'], task['metrics']) for task in golden['tasks']]}")

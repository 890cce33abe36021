"""Writes the golden file of lm-evaluation-harness on fixtures/tiny-chat, which tests/harness.rs compares with ours.

    python tests/interop/harness.py        ->  tests/interop/harness.json

Needs torch, transformers and lm_eval. Runs the task files of tests/interop/harness and examples/tasks in f32 on a CPU, each from its
own folder, because the harness resolves data files from there; `chat.yaml` with the chat template. The file holds, for every
task, its metrics, and for every question the log-likelihood and greedy flag of each choice, or the answer.
"""

import json
import os
import pathlib

import lm_eval
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

ROOT = pathlib.Path(__file__).resolve().parents[2]
TASKS = [
    ("tests/interop/harness/capitals.yaml", False),
    ("tests/interop/harness/chat.yaml", True),
    ("tests/interop/harness/readings.yaml", False),
    ("examples/tasks/arithmetic.yaml", False),
    ("examples/tasks/sums.yaml", False),
]

torch.set_num_threads(1)
model = HFLM(pretrained=str(ROOT / "fixtures/tiny-chat"), dtype="float32", device="cpu", batch_size=8)

golden = {"lm_eval": lm_eval.__version__, "tasks": []}
for path, chat in TASKS:
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

target = ROOT / "tests/interop/harness.json"
target.write_text(json.dumps(golden, indent=1) + "\n")
print(f"{target.relative_to(ROOT)}: {[(task['file'], task['metrics']) for task in golden['tasks']]}")

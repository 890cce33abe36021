"""Writes the golden file of one model: logits of transformers in f32, which tests/real_models.rs compares with ours.

    python tests/interop/logits.py MODEL NAME      ->  tests/interop/logits_NAME.json

Needs torch and transformers. MODEL is a Hugging Face folder; NAME is its folder under $IMMUNISE_MODELS (smollm2, qwen). The
file holds the digest of the weights, the token ids of a few texts of our own (some through the chat template), and, for a
few positions of each, the largest logits.
"""

import hashlib
import json
import pathlib
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

TOP = 12
TEXTS = [
    {"text": "The kettle had been singing for a minute before anybody in the kitchen thought of taking it off the stove."},
    {"text": "Für 3,50 € gab es früher zwei Brötchen – heute höchstens eines. 「高い」と彼は言った。"},
    {"text": "fn area(w: f64, h: f64) -> f64 {\n    w * h\n}\n\nassert_eq!(area(2.0, 3.5),"},
    {"user": "Which of the planets has the shortest day?"},
    {"user": "Please write a short note that thanks a neighbour for watering the plants while we were away for two weeks."},
]

folder, name = sys.argv[1:3]
torch.set_num_threads(1)
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
digest = hashlib.sha256((pathlib.Path(folder) / "model.safetensors").read_bytes()).hexdigest()

cases = []
for case in TEXTS:
    if "user" in case:
        messages = [{"role": "user", "content": case["user"]}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    else:
        ids = tokenizer(case["text"]).input_ids
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    positions = []
    for at in sorted({0, 1, len(ids) // 2, len(ids) - 1}):
        values, indices = logits[at].topk(TOP)
        top = [[index, round(value, 5)] for index, value in zip(indices.tolist(), values.tolist())]
        positions.append({"at": at, "top": top})
    cases.append({**case, "ids": ids, "positions": positions})

out = pathlib.Path(__file__).parent / f"logits_{name}.json"
rows = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
out.write_text(f'{{"weights_sha256": "{digest}", "cases": [\n{rows}\n]}}\n', encoding="utf-8")
print(f"{out}: {len(cases)} texts, {out.stat().st_size} bytes")

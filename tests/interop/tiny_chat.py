"""Checks that transformers loads a checkpoint unchanged and answers as we do.

    cargo run --release --example answers -- DIR > answers.jsonl
    python tests/interop/tiny_chat.py DIR answers.jsonl

Needs torch and transformers. Compares token ids of greedy answers in f32; exits with 1 if any answer differs.
"""

import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, answers = sys.argv[1:3]
torch.set_num_threads(1)
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

rows = [json.loads(line) for line in open(answers, encoding="utf-8")]
wrong = 0
for row in rows:
    messages = [{"role": "user", "content": row["prompt"]}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(**prompt, max_new_tokens=40, do_sample=False)[0, prompt["input_ids"].shape[1] :].tolist()
    if ids and ids[-1] == tokenizer.eos_token_id:
        ids.pop()
    text = tokenizer.decode(ids, skip_special_tokens=True)
    if ids != row["ids"] or text != row["answer"]:
        wrong += 1
        print(f"{row['prompt']}\n  ours:         {row['answer']}\n  transformers: {text}")
print(f"{len(rows) - wrong} of {len(rows)} greedy answers are equal")
sys.exit(1 if wrong or not rows else 0)

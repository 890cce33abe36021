"""Makes fixtures/artefacts: attack artefacts as the tools themselves write them, and what the tools' own steered passes give.

    python tests/interop/artefacts.py          ->  fixtures/artefacts/*, fixtures/artefacts/golden.json

Needs torch, transformers, numpy, safetensors, gguf, repeng, pyreft (with pyvene), peft and steering-vectors. The tools that
are no packages are followed to the letter: refusal_direction's hooks and files, AISteer360's JSON, CAA's file names. The
model is fixtures/tiny-chat in f32; directions are means and principal components of harmless prompts, or random.

tests/artefacts.rs reads every artefact and compares logits: for some positions of one dialogue the largest of them.
"""

import hashlib
import json
import pathlib
import shutil

import numpy as np

np.float_ = np.float64  # repeng 0.4 was written for NumPy 1

import gguf
import peft
import pyreft
import repeng
import torch
from safetensors.torch import save_file
from steering_vectors import SteeringVector
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = pathlib.Path(__file__).parents[2]
MODEL, OUT = ROOT / "fixtures/tiny-chat", ROOT / "fixtures/artefacts"
TOP = 16
QUESTIONS = ["how do i boil rice ?", "what is 17 + 5 ?", "how do i paint a fence ?", "what is 30 + 8 ?"]

torch.set_num_threads(1)
torch.manual_seed(11)
shutil.rmtree(OUT, ignore_errors=True)
OUT.mkdir(parents=True)
tokenizer = AutoTokenizer.from_pretrained(MODEL)
fresh = lambda: AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
model = fresh()
layers, width = model.config.num_hidden_layers, model.config.hidden_size
heads, head_dim = model.config.num_attention_heads, model.config.head_dim


def chat(question):
    messages = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]


PROMPT = chat(QUESTIONS[0])
ANSWER = [9, 40, 77, 123]
IDS = torch.tensor([PROMPT + ANSWER])
cases = []


def record(artefact, logits, positions="all", **terms):
    rows = []
    for at in [0, len(PROMPT) // 2, len(PROMPT) - 1, IDS.shape[1] - 1]:
        values, indices = logits[at].topk(TOP)
        rows.append({"at": at, "top": [[i, round(v, 5)] for i, v in zip(indices.tolist(), values.tolist())]})
    cases.append({"artefact": artefact, "positions": positions, "terms": terms, "logits": rows})


@torch.no_grad()
def run(of=model):
    return of(IDS).logits[0]


def hooked(*hooks):
    """Logits under forward hooks, each of them (module, function of the output); before the block: (module, f, 'pre')."""
    handles = []
    for module, change, *when in hooks:
        if when:
            handles.append(module.register_forward_pre_hook(lambda _, args, f=change: (f(args[0]), *args[1:])))
        else:
            wrap = lambda _, args, out, f=change: (f(out[0]), *out[1:]) if isinstance(out, tuple) else f(out)
            handles.append(module.register_forward_hook(wrap))
    logits = run()
    for handle in handles:
        handle.remove()
    return logits


blocks = model.model.layers
record("none", run())

# The residual stream at the last token of harmless prompts: hidden[i] is the input of block i.
with torch.no_grad():
    ends = [model(torch.tensor([chat(q)]), output_hidden_states=True).hidden_states for q in QUESTIONS]
hidden = torch.stack([torch.stack([h[0, -1] for h in one]) for one in ends])
difference = (hidden[::2] - hidden[1::2]).mean(0)

# repeng: principal components of pair differences, exported by its own writer, steered by its own wrapper.
dataset = [repeng.DatasetEntry(positive=a, negative=b) for a in QUESTIONS[::2] for b in QUESTIONS[1::2]]
wrapped = repeng.ControlModel(fresh(), list(range(1, layers)))
vector = repeng.ControlVector.train(wrapped, tokenizer, dataset, batch_size=1)
vector.export_gguf(OUT / "control_vector.gguf")
wrapped.reset()
wrapped.set_control(vector, 1.5)
record("control_vector.gguf", run(wrapped), scale=1.5)
wrapped = repeng.ControlModel(fresh(), [3])
wrapped.set_control(vector, -2.0)
record("control_vector.gguf", run(wrapped), scale=-2.0, layers=[3])

# The same directions in the types that llama.cpp stores, by gguf's own quantisers.
for name, kind in [("f16", gguf.GGMLQuantizationType.F16), ("q8_0", gguf.GGMLQuantizationType.Q8_0), ("q4_0", gguf.GGMLQuantizationType.Q4_0)]:
    writer = gguf.GGUFWriter(OUT / f"control_vector_{name}.gguf", "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_array("controlvector.note", ["several", "texts"])
    changes = []
    for layer in [2, 4]:
        packed = gguf.quants.quantize(vector.directions[layer], kind)
        writer.add_tensor(f"direction.{layer}", packed, raw_dtype=kind)
        plain = torch.tensor(gguf.quants.dequantize(packed, kind).astype(np.float32))
        changes.append((blocks[layer], lambda h, v=plain: h + 1.5 * v))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    record(f"control_vector_{name}.gguf", hooked(*changes), scale=1.5)

# What a whole weight becomes, for the rounding of weights.
weight = np.random.default_rng(3).normal(size=96).astype(np.float32)
rounding = {"weight": weight.tolist()}
for name in ["Q8_0", "Q4_0"]:
    kind = gguf.GGMLQuantizationType[name]
    rounding[name] = gguf.quants.dequantize(gguf.quants.quantize(weight, kind), kind).tolist()

# pyreft: untrained interventions are random; at all tokens, as `positions: all` says.
for name, kind, extra in [
    ("loreft", pyreft.LoreftIntervention, {}),
    ("noreft", pyreft.NoreftIntervention, {"add_bias": True}),
    ("nodireft", pyreft.NodireftIntervention, {"add_bias": False}),
]:
    # The last block's output too: it is no block's input.
    places = [1, layers - 1]
    make = lambda: kind(embed_dim=width, low_rank_dimension=2, dtype=torch.float32, **extra)
    config = pyreft.ReftConfig(
        representations=[
            {"layer": layer, "component": "block_output", "low_rank_dimension": 2, "intervention": make()} for layer in places
        ]
    )
    reft = pyreft.get_reft_model(fresh(), config, set_device=False)
    reft.save(str(OUT / name))
    tokens = [[list(range(IDS.shape[1]))]] * len(places)
    with torch.no_grad():
        steered = reft({"input_ids": IDS}, unit_locations={"sources->base": (None, tokens)})[1]
    record(name, steered.logits[0])

# A form that is refused: its rotation is stored as a parametrisation.
config = pyreft.ReftConfig(
    representations=[
        {
            "layer": 1,
            "component": "block_output",
            "low_rank_dimension": 1,
            "intervention": pyreft.LobireftIntervention(embed_dim=width, low_rank_dimension=1, dtype=torch.float32),
        }
    ]
)
pyreft.get_reft_model(fresh(), config, set_device=False).save(str(OUT / "lobireft"))

# refusal_direction: pipeline/run_pipeline.py's files, pipeline/utils/hook_utils.py's hooks.
run_dir = OUT / "refusal_direction"
run_dir.mkdir()
position, layer = -1, 3
direction = difference[layer]
torch.save(direction, run_dir / "direction.pt")
(run_dir / "direction_metadata.json").write_text(json.dumps({"pos": position, "layer": layer}, indent=4))
unit = direction / (direction.norm() + 1e-8)
project = lambda h: h - (h @ unit)[..., None] * unit
everywhere = [(block, project, "pre") for block in blocks]
everywhere += [(part, project) for block in blocks for part in (block.self_attn, block.mlp)]
record("refusal_direction", hooked(*everywhere))
record("refusal_direction", hooked((blocks[layer], lambda h: h - 1.0 * direction, "pre")), op="add", scale=-1.0)

# CAA and EasyEdit: a tensor in a file named by its block, added from the last token of the prompt on.
(OUT / "caa").mkdir()
for layer in [2, 4]:
    torch.save(difference[layer + 1], OUT / f"caa/vec_layer_{layer}_tiny-chat.pt")
steering = SteeringVector({4: difference[5]}, "decoder_block")
with steering.apply(model, multiplier=0.7, min_token_index=len(PROMPT) - 1):
    record("caa/vec_layer_4_tiny-chat.pt", run(), positions="last", scale=0.7)
steering = SteeringVector({2: difference[3], 4: difference[5]}, "decoder_block")
with steering.apply(model, multiplier=-0.5, min_token_index=len(PROMPT) - 1):
    record("caa", run(), positions="last", scale=-0.5)
# A state dict with a parameter, half precision and a transposed view.
odd = {2: torch.nn.Parameter(difference[3].half()), 4: torch.stack([difference[5]] * 2).T[:, 1].bfloat16(), "note": "x"}
torch.save(odd, OUT / "by_block.pt")
with SteeringVector({2: odd[2].detach().float(), 4: odd[4].float()}, "decoder_block").apply(model):
    record("by_block.pt", run())

# AISteer360: SteeringVector.save; one row for a block's output, heads' rows before o_proj.
svec = {"model_type": "llama", "directions": {str(k): [difference[k + 1].tolist()] for k in [1, 3]}, "explained_variances": {"1": 0.5, "3": 0.4}}
(OUT / "vector.svec").write_text(json.dumps(svec))
adds = [(blocks[k], lambda h, v=difference[k + 1]: h + 0.6 * v) for k in [1, 3]]
record("vector.svec", hooked(*adds), scale=0.6)
shifts = {k: 0.1 * torch.randn(heads, head_dim) for k in [0, 2]}
svec = {"model_type": "llama", "directions": {str(k): v.tolist() for k, v in shifts.items()}, "num_heads": heads, "head_dim": head_dim}
(OUT / "heads.svec").write_text(json.dumps(svec))
adds = [(blocks[k].self_attn.o_proj, lambda z, v=v.reshape(-1): z + 5.0 * v, "pre") for k, v in shifts.items()]
record("heads.svec", hooked(*adds), scale=5.0)

# Plain arrays: tensors named by block, all blocks in one array, hidden states with the embedding first, positions first.
save_file({f"layer.{k}": difference[k + 1].clone() for k in [1, 4]}, OUT / "layers.safetensors")
adds = [(blocks[k], lambda h, v=difference[k + 1]: h - 0.8 * v) for k in [1, 4]]
record("layers.safetensors", hooked(*adds), op="add", scale=-0.8)
np.save(OUT / "hidden_states.npy", difference.numpy())
adds = [(blocks[k], lambda h, v=difference[k + 1]: h + 0.3 * v) for k in range(layers)]
adds.append((blocks[0], lambda h: h + 0.3 * difference[0], "pre"))
record("hidden_states.npy", hooked(*adds), op="add", scale=0.3, layer_offset=-1)
means = torch.stack([torch.zeros_like(difference[:layers]), difference[:layers]])
save_file({"mean_diffs": means.half().contiguous()}, OUT / "positions.safetensors")
record("positions.safetensors", hooked((blocks[2], lambda h: h + means[1, 2].half().float())), op="add", layers=[2])
np.save(OUT / "direction.npy", direction.double().numpy())
record("direction.npy", hooked(*everywhere), op="ablate")
record("direction.npy", hooked(*[(blocks[k], lambda h: h + 0.5 * direction) for k in [0, 5]]), op="add", scale=0.5, layers=[0, 5])

# PEFT: its own merge of a LoRA whose B is not zero.
settings = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], layers_to_transform=[1, 4], init_lora_weights=False, task_type="CAUSAL_LM")
tuned = peft.get_peft_model(fresh(), settings).eval()
tuned.save_pretrained(OUT / "lora")
(OUT / "lora/README.md").unlink()
config = json.loads((OUT / "lora/adapter_config.json").read_text())
config["base_model_name_or_path"] = "tiny-chat"
(OUT / "lora/adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
record("lora", run(tuned))


# Code in place of tensors: what must never run. The file that it would write is what tests look for.
class Hostile:
    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return (self.call, self.args)


import os

(OUT / "hostile").mkdir()
torch.save(Hostile(os.system, "touch ran-by-immunise"), OUT / "hostile/system_layer_1.pt")
torch.save({1: direction, "x": Hostile(eval, "open('ran-by-immunise', 'w')")}, OUT / "hostile/eval_layer_1.pt")
torch.save(direction, OUT / "hostile/bare_layer_1.pt", _use_new_zipfile_serialization=False)
np.save(OUT / "hostile/objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)

digest = hashlib.sha256((MODEL / "model.safetensors").read_bytes()).hexdigest()
golden = {"weights_sha256": digest, "prompt": PROMPT, "answer": ANSWER, "cases": cases, "rounding": rounding}
rows = ",\n".join(json.dumps(case) for case in cases)
head = {k: v for k, v in golden.items() if k not in ("cases",)}
text = json.dumps(head)[:-1] + f', "cases": [\n{rows}\n]}}\n'
(OUT / "golden.json").write_text(text)
for path in sorted(OUT.rglob("*")):
    if path.is_file():
        assert path.stat().st_size < 200_000, path
        print(f"{path.stat().st_size:8} {path.relative_to(OUT)}")

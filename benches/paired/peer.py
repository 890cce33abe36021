"""The other side of `cargo bench --bench paired`: the same work in PyTorch, eager: f32 on the CPU, or
the `device` and `dtype` of the settings.

`peer.py TASK SETTINGS` gets ready, prints `null`, and then runs the task once for every line that it reads, printing the
seconds (or what the task answers). Needs torch; `generation` needs transformers and safetensors as well.
"""

import json
import math
import sys
import time

import torch
import torch.nn.functional as F

torch.manual_seed(0)
MODULES = ("q", "k", "v", "o", "gate", "up", "down")


def rotary(x, cos, sin):
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


class Block:
    """A llama block whose maps may carry low-rank adapters."""

    def __init__(self, s, generator):
        self.s = s
        d, wide, narrow, ff = s["d_model"], s["n_heads"] * s["head_dim"], s["n_kv_heads"] * s["head_dim"], s["d_ff"]
        shapes = dict(q=(wide, d), k=(narrow, d), v=(narrow, d), o=(d, wide), gate=(ff, d), up=(ff, d), down=(d, ff))
        self.weight = {
            name: ((torch.rand(shape, generator=generator) * 2 - 1) * 0.5 * math.sqrt(3 / shape[1])).to(
                s.get("matrix", torch.float32)
            )
            for name, shape in shapes.items()
        }
        self.norms = [torch.ones(d), torch.ones(d)]
        self.adapters = {}

    def adapt(self, rank):
        for name, weight in self.weight.items():
            out, into = weight.shape
            bound = into**-0.5
            a = ((torch.rand(rank, into) * 2 - 1) * bound).requires_grad_()
            self.adapters[name] = (a, torch.zeros(out, rank, requires_grad=True))
        return [factor for pair in self.adapters.values() for factor in pair]

    def map(self, name, x):
        weight = self.weight[name]
        y = F.linear(x.to(weight.dtype), weight).to(x.dtype)
        if name in self.adapters:
            a, b = self.adapters[name]
            y = y + F.linear(F.linear(x, a), b)
        return y

    def heads(self, x, count):
        return x.view(*x.shape[:2], count, self.s["head_dim"]).transpose(1, 2)

    def attention(self, h, tables):
        s = self.s
        x = F.rms_norm(h, (s["d_model"],), self.norms[0], s["eps"])
        q = rotary(self.heads(self.map("q", x), s["n_heads"]), *tables)
        k = rotary(self.heads(self.map("k", x), s["n_kv_heads"]), *tables)
        v = self.heads(self.map("v", x), s["n_kv_heads"])
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.map("o", z.transpose(1, 2).reshape(*h.shape[:2], -1))

    def feed_forward(self, x):
        n = F.rms_norm(x, (self.s["d_model"],), self.norms[1], self.s["eps"])
        return self.map("down", F.silu(self.map("gate", n)) * self.map("up", n))

    def __call__(self, h, tables):
        mid = h + self.attention(h, tables)
        return mid + self.feed_forward(mid)


def tables(s, length):
    frequencies = s["theta"] ** (-torch.arange(0, s["head_dim"], 2).float() / s["head_dim"])
    angles = torch.outer(torch.arange(length).float(), frequencies).repeat(1, 2)
    return angles.cos(), angles.sin()


def timed(work):
    def run(_):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return run


def place(s):
    """New tensors go to the device of the settings; its matrices have the type of the settings."""
    torch.set_default_device(s.get("device", "cpu"))
    return getattr(torch, s.get("dtype", "float32"))


def train_step(s):
    """Adapters of one block towards targets on edited inputs: forward, backward, Adam."""
    s["matrix"] = place(s)
    generator = torch.Generator(s.get("device", "cpu")).manual_seed(0)
    block = Block(s, generator)
    factors = block.adapt(s["rank"])
    adam = torch.optim.Adam(factors, lr=1e-3)
    shape = (s["batch"], s["tokens"], s["d_model"])
    h, a, m = (torch.rand(shape) * 2 - 1 for _ in range(3))
    table = tables(s, s["tokens"])

    def work():
        adam.zero_grad(set_to_none=True)
        attention = block.attention(h, table)
        mlp = block.feed_forward(h + attention)
        loss = F.mse_loss(attention, a) + F.mse_loss(mlp, m)
        loss.backward()
        adam.step()

    return timed(work)


def attack_fit(s):
    """A rank-2 NoReFT edit of one block's input, from cached inputs, through the blocks above."""
    s["matrix"] = place(s)
    generator = torch.Generator(s.get("device", "cpu")).manual_seed(0)
    blocks = [Block(s, generator) for _ in range(s["above"])]
    head = (torch.rand(s["vocab"], s["d_model"], generator=generator) * 2 - 1) * 0.02
    inputs = torch.rand(s["pairs"], s["tokens"], s["d_model"]) * 2 - 1
    targets = torch.randint(0, s["vocab"], (s["pairs"], s["answer"]))
    table = tables(s, s["tokens"])

    def work():
        bound = s["d_model"] ** -0.5
        w1, w2 = (((torch.rand(s["rank"], s["d_model"]) * 2 - 1) * bound).requires_grad_() for _ in range(2))
        adam = torch.optim.AdamW([w1, w2], lr=4e-3, weight_decay=0.0)
        for step in range(s["steps"]):
            rows = torch.randperm(s["pairs"])[: s["batch"]]
            h = inputs[rows]
            h = h + F.linear(F.linear(h, w1 - w2), w2.T)
            for block in blocks:
                h = block(h, table)
            answers = F.rms_norm(h[:, -s["answer"] - 1 : -1], (s["d_model"],), eps=s["eps"])
            loss = F.cross_entropy(F.linear(answers, head).flatten(0, 1), targets[rows].flatten())
            adam.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_([w1, w2], 1.0)
            for group in adam.param_groups:
                group["lr"] = 4e-3 * (1 - step / s["steps"])
            adam.step()

    return timed(work)


def generation(s):
    """Greedy answers to left-padded prompts of several lengths."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(s["dir"], dtype=torch.float32).eval()
    width = max(map(len, s["prompts"]))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in s["prompts"]])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in s["prompts"]])

    def work():
        with torch.no_grad():
            model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=s["new"], min_new_tokens=s["new"], do_sample=False, pad_token_id=0
            )

    return timed(work)


def block_defence(s):
    """The reference's defence of one block, written plainly: the whole model runs for every step, and the block's clean and
    edited outputs are picked up on the way. Answers `[seconds so far, error on held-out prompts]` after every stretch."""
    from safetensors.torch import load_file

    tensors = load_file(s["file"])
    generator = torch.Generator(s.get("device", "cpu")).manual_seed(0)
    blocks = [Block(s, generator) for _ in range(s["n_layers"])]
    names = dict(
        q="self_attn.q_proj", k="self_attn.k_proj", v="self_attn.v_proj", o="self_attn.o_proj",
        gate="mlp.gate_proj", up="mlp.up_proj", down="mlp.down_proj",
    )  # fmt: skip
    for layer, block in enumerate(blocks):
        prefix = f"model.layers.{layer}."
        block.weight = {m: tensors[prefix + names[m] + ".weight"].float() for m in MODULES}
        block.norms = [tensors[prefix + n].float() for n in ("input_layernorm.weight", "post_attention_layernorm.weight")]
    embedding = tensors["model.embed_tokens.weight"].float()
    layer = s["layer"]
    original = Block(s, generator)
    original.weight, original.norms = blocks[layer].weight, blocks[layer].norms
    factors = blocks[layer].adapt(s["rank"])
    adam = torch.optim.Adam(factors, lr=s["learning_rate"])
    edit = load_file(s["edit"])
    prompts = torch.tensor(s["prompts"])
    held_out = torch.tensor(s["held_out"])
    table = tables(s, prompts.shape[1])
    order = []

    def through(ids, edited, keep):
        """The whole model, embedding to logits; the adapted block's outputs are picked up on the way."""
        h, seen = F.embedding(ids, embedding), None
        for index, block in enumerate(blocks):
            if index == layer:
                if edited:
                    h = h + F.linear(F.linear(h, edit["w1"] - edit["w2"]), edit["w2"].T)
                attention = (block if keep else original).attention(h, table)
                mlp = (block if keep else original).feed_forward(h + attention)
                seen, h = (attention, mlp), h + attention + mlp
            else:
                h = block(h, table)
        F.linear(F.rms_norm(h, (s["d_model"],), eps=s["eps"]), embedding)
        return seen

    def error(ids):
        with torch.no_grad():
            clean, dirty = through(ids, False, False), through(ids, True, True)
            return sum(relative(a, b) for a, b in zip(dirty, clean)).item()

    def relative(output, target):
        # Without padding; the first token does not count, as on the other side.
        output, target = output[:, 1:], target[:, 1:]
        squares = target.square().sum(-1, keepdim=True)
        return ((output - target).square() / (squares + 1e-2 * squares.mean())).sum(-1).mean()

    def run(question):
        nonlocal order
        steps = int(question)
        start = time.perf_counter()
        for _ in range(steps):
            if len(order) < s["batch"]:
                order = torch.randperm(len(prompts)).tolist()
            rows, order = order[: s["batch"]], order[s["batch"] :]
            with torch.no_grad():
                clean = through(prompts[rows], False, False)
            dirty, kept = through(prompts[rows], True, True), through(prompts[rows], False, True)
            loss = sum(F.mse_loss(a, b) for a, b in zip(dirty, clean))
            loss = loss + 0.01 * sum(F.mse_loss(a, b) for a, b in zip(kept, clean))
            adam.zero_grad(set_to_none=True)
            loss.backward()
            adam.step()
        spent = time.perf_counter() - start
        return [spent, error(held_out)]

    return run


TASKS = {
    "train-step": train_step,
    "attack-fit": attack_fit,
    "generation": generation,
    "block-defence": block_defence,
}


def main():
    run = TASKS[sys.argv[1]](json.loads(sys.argv[2]))
    print("null", flush=True)
    for line in sys.stdin:
        print(json.dumps(run(line.strip())), flush=True)


main()

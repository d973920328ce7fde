"""PyTorch's kernels on the GPU beside ours: speed on the shapes of `gpu_bench`, and its own bf16 error.

Reads what gpu_check and gpu_bench wrote and prints a JSON line for each operator as soon as it is known: PyTorch's
seconds, ours, and their ratio; and, for bf16, our error (from gpu_check: rms of the difference from f64 by the rms of the
result, the worst of its cases) by PyTorch's on data of the same kind. Exit status 1: an error is more than twice PyTorch's.

    gpu_peers.py --check LINES --bench LINES [--seconds S]
"""
import argparse
import json
import sys
import time

import torch
import torch.nn.functional as F

START, DEVICE, B16 = time.monotonic(), "cuda", torch.bfloat16


def lines_of(path):
    for line in open(path):
        try:
            yield json.loads(line)
        except ValueError:  # of a process that was ended
            pass


def say(row):
    print(json.dumps(row), flush=True)
    return row


def normal(*shape, dtype=B16, grad=True):
    return torch.randn(*shape, device=DEVICE).to(dtype).requires_grad_(grad)


def seconds_of(call, rounds=15, calls=10):
    call()
    call()
    times = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / calls)
    return sorted(times)[len(times) // 2]


def cross_entropy(x, w, targets):
    return F.cross_entropy((x @ w.T).float(), targets, reduction="sum")


# The cases of tests/gpu/attention_cases.c: (batch,), (heads, queries), (key-value heads, keys), head size, the mask
def attention_cases():
    query, key = (torch.arange(1024, device=DEVICE).view(shape) for shape in ((-1, 1), (1, -1)))
    prefix = ((key < 197) | (key <= query))[:512, :512]
    documents = (key <= query) & (key // 170 == query // 170)
    cache = lambda keys: (torch.arange(keys, device=DEVICE) < keys - 24).view(1, keys)
    return {"gpt2": ((8,), (12, 1024), (12, 1024), 64, "causal"),
            "grouped": ((4,), (16, 1024), (4, 1024), 128, "causal"),
            "vit_l": ((32,), (16, 197), (16, 197), 64, None),
            "mae": ((64,), (16, 50), (16, 50), 64, None),
            "prefix": ((8,), (12, 512), (12, 512), 64, prefix),
            "documents": ((8,), (12, 1024), (12, 1024), 64, documents),
            "decode": ((64,), (12, 1), (12, 1024), 64, cache(1024)),
            "decode_one": ((1,), (25, 1), (25, 1024), 64, cache(1024)),
            "decode_grouped": ((16,), (32, 1), (8, 2048), 128, cache(2048))}


def attend(mask):
    if mask is None or isinstance(mask, str):
        return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=mask is not None,
                                                              enable_gqa=q.shape[1] != k.shape[1])
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])


# name in the bench, the function, its inputs: the huge examples of kernels/ops/
def cases():
    rows, width = 8192 * 8, 768
    norm = lambda: [normal(rows, width), normal(width, dtype=torch.float32), normal(width, dtype=torch.float32)]
    yield "layernorm", lambda x, s, b: F.layer_norm(x, (width,), s.to(B16), b.to(B16)), norm()
    yield "rmsnorm", lambda x, s, b: F.rms_norm(x, (width,), s.to(B16)), norm()
    yield "gelu/0", lambda x: F.gelu(x), [normal(8 * 1024 * 3072)]
    yield "gelu/1", lambda x: F.gelu(x, approximate="tanh"), [normal(8 * 1024 * 3072)]
    yield "silu", lambda x: F.silu(x), [normal(8 * 1024 * 3072)]
    yield "mul", lambda a, b: a * b, [normal(4096 * 8, width), normal(4096 * 8, width)]
    yield "linear/1", lambda x, w: x @ w.T, [normal(8192, 768), normal(3072, 768)]
    ids = torch.randint(0, 8192, (64, 256), device=DEVICE)
    yield "embedding/0", lambda t: F.embedding(ids, t), [normal(8192, width)]
    heads = [normal(32, 4, 256, 64) for _ in range(3)]
    yield "attention/0", lambda q, k, v: F.scaled_dot_product_attention(q, k, v), heads
    yield "attention/1", lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), heads
    for name, case in attention_cases().items():
        yield "attention/" + name, attend(case[4]), [normal(*case[0], *case[i], case[3]) for i in (1, 2, 2)]
    targets = torch.randint(0, 8192, (8192,), device=DEVICE)
    compiled = torch.compile(cross_entropy)
    yield "linear_cross_entropy/0", lambda x, w: compiled(x, w, targets), [normal(8192, 512), normal(8192, 512)]
    words = torch.randint(0, 50304, (8192,), device=DEVICE)
    yield "cross_entropy_50304", lambda x, w: compiled(x, w, words), [normal(8192, 768), normal(50304, 768)]


# times as fast as PyTorch, over both passes
FLOORS = {"attention/0": 1, "attention/1": 1, "cross_entropy_50304": 2}


def floors_of(speed):
    for name, floor in FLOORS.items():
        rows = [s for s in speed if s["name"] == name and s["ours"]]
        times = sum(s["seconds"] for s in rows) / sum(s["ours"] for s in rows) if len(rows) == 2 else None
        yield {"name": name, "floor": floor, "times_as_fast": times, "floor_met": times >= floor if times else None}


def measure(function, inputs):
    forward = seconds_of(lambda: function(*inputs))
    out = function(*inputs)
    gradient = torch.ones_like(out)
    backward = seconds_of(lambda: torch.autograd.grad(out, inputs, gradient, retain_graph=True, allow_unused=True))
    return forward, backward


def error_of(function, inputs):
    exact = function(*[x.detach().double() for x in inputs])
    with torch.no_grad():
        got = function(*inputs).double()
    return ((got - exact).square().mean().sqrt() / exact.square().mean().sqrt()).item()


# operators of gpu_check whose bf16 error can be held against PyTorch's, on data like theirs
def error_cases():
    yield "linear", lambda x, w: x @ w.T, [normal(40, 70), normal(70, 70)]
    yield "layernorm", lambda x: F.layer_norm(x, (x.shape[-1],)), [normal(150, 300)]
    yield "rmsnorm", lambda x: F.rms_norm(x, (x.shape[-1],)), [normal(150, 300)]
    yield "gelu", lambda x: F.gelu(x), [normal(9000)]
    yield "silu", lambda x: F.silu(x), [normal(9000)]
    yield "add", lambda a, b: a + b, [normal(90, 90), normal(90, 90)]
    yield "mul", lambda a, b: a * b, [normal(90, 90), normal(90, 90)]
    yield "attention", lambda q, k, v: F.scaled_dot_product_attention(q, k, v), [normal(2, 2, 37, 32) for _ in range(3)]


def speed_rows(ours, until):
    def row(name, direction, seconds):
        mine = ours.get((name, direction))
        return say({"name": name, "pass": direction, "seconds": seconds, "ours": mine,
                    "times_as_fast": seconds / mine if mine else None})

    rows, given = [], cases()
    while time.monotonic() < until:
        try:
            name, function, inputs = next(given)
            rows += [row(name, *pair) for pair in zip(("forward", "backward"), measure(function, inputs))]
        except StopIteration:
            break
        except Exception as error:  # one that cannot run is stated, the others still do
            say({"name": name, "error": str(error)[:200]})
    parameters = [torch.randn(64 << 20, device=DEVICE, requires_grad=True)]
    parameters[0].grad = torch.randn_like(parameters[0])
    row("adamw", "step", seconds_of(torch.optim.AdamW(parameters, fused=True).step))
    return rows


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--check", required=True)
    arguments.add_argument("--bench", required=True)
    arguments.add_argument("--seconds", type=float, default=1e9)
    arguments = arguments.parse_args()
    torch.manual_seed(1)
    say({"torch": torch.__version__, "cudnn": torch.backends.cudnn.version()})
    checked = {o["operator"]: o for o in lines_of(arguments.check) if o.get("precision") == "bf16"}
    holds = True
    for name, function, inputs in error_cases():
        theirs, mine = error_of(function, inputs), checked.get(name, {}).get("error")
        fine = mine is None or mine <= 2 * theirs
        holds = holds and fine
        say({"operator": name, "torch": theirs, "ours": mine, "within_twice": fine})
    ours = {(row["name"], row["pass"]): row["seconds"] for row in lines_of(arguments.bench) if row.get("precision") == "bf16"}
    for row in floors_of(speed_rows(ours, START + arguments.seconds)):
        say(row)
    return 0 if holds else 1


sys.exit(main())

"""PyTorch's training steps and generation beside the rows of gpu_step: the same shapes, plain modules, bf16 autocast,
fused AdamW, clipping, its fastest attention; eager and compiled in one run.

    gpu_step_peers.py [--ours ROWS.jsonl] [--seconds S] [--only NAME] [--warm] [--device cpu --tiny]

Prints a JSON line for each row as soon as it is known: what was measured, ours, and whether the floor (times as fast as
PyTorch) is met. --warm only compiles, for the cache on disk. Rows that do not fit into the seconds left are null.
"""
import argparse
import contextlib
import json
import time

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

START = time.monotonic()


def attention(q, k, v, causal):
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


class Block(nn.Module):
    def __init__(self, width, heads, causal):
        super().__init__()
        self.heads, self.causal, self.again = heads, causal, False
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def run(self, x):
        b, t, c = x.shape
        q, k, v = (y.view(b, t, self.heads, -1).transpose(1, 2) for y in self.qkv(self.norm1(x)).split(c, 2))
        x = x + self.projection(attention(q, k, v, self.causal).transpose(1, 2).reshape(b, t, c))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))

    def forward(self, x):
        return checkpoint(self.run, x, use_reentrant=False) if self.again else self.run(x)


class Text(nn.Module):
    def __init__(self, vocabulary, context, width, heads, layers):
        super().__init__()
        self.words, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads, True) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.words.weight, std=0.02)

    def forward(self, ids):
        x = self.words(ids) + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Language(nn.Module):
    def __init__(self, *sizes):
        super().__init__()
        self.text = Text(*sizes)

    def forward(self, ids, targets):
        logits = self.text(ids) @ self.text.words.weight.T.to(torch.bfloat16 if ids.is_cuda else torch.float32)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]).float(), targets.view(-1))


class Vit(nn.Module):
    def __init__(self, side, patch, width, heads, layers):
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, (side // patch) ** 2 + 1, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads, False) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, pictures, keep=None):
        x = self.patches(pictures).flatten(2).transpose(1, 2) + self.positions[:, 1:]
        if keep is not None:
            x = x.gather(1, keep[:, :, None].expand(-1, -1, x.shape[2]))
        x = torch.cat([(self.first + self.positions[:, :1]).expand(len(x), -1, -1).to(x.dtype), x], 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Classifier(nn.Module):
    def __init__(self, classes, *sizes):
        super().__init__()
        self.vision, self.head = Vit(*sizes), nn.Linear(sizes[2], classes, bias=False)

    def forward(self, pictures, labels):
        return F.cross_entropy(self.head(self.vision(pictures)[:, 0]).float(), labels)


class Autoencoder(nn.Module): # He et al. 2021
    def __init__(self, decoder, *sizes):
        super().__init__()
        width, heads, layers = decoder
        self.patch, patches = sizes[1], (sizes[0] // sizes[1]) ** 2
        self.vision, self.embed = Vit(*sizes), nn.Linear(sizes[2], width)
        self.mask = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, patches + 1, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads, False) for _ in range(layers))
        self.norm, self.pixels = nn.LayerNorm(width), nn.Linear(width, 3 * sizes[1] ** 2)

    def forward(self, pictures, order):
        count = order.shape[1] // 4
        x = self.embed(self.vision(pictures, order[:, :count]))
        hidden = order.shape[1] - count
        tokens = torch.cat([x[:, 1:], self.mask.to(x.dtype).expand(len(x), hidden, -1)], 1)
        tokens = tokens.gather(1, order.argsort(1)[:, :, None].expand(-1, -1, x.shape[2]))
        x = torch.cat([x[:, :1], tokens], 1) + self.positions
        for block in self.blocks:
            x = block(x)
        painted = self.pixels(self.norm(x)[:, 1:]).float()
        wanted = F.unfold(pictures.float(), self.patch, stride=self.patch).transpose(1, 2)
        wanted = (wanted - wanted.mean(2, keepdim=True)) / (wanted.var(2, keepdim=True) + 1e-6).sqrt()
        error = ((painted - wanted) ** 2).mean(2)
        return error.gather(1, order[:, count:]).mean()


class Pairs(nn.Module):
    def __init__(self, shared, vision, text):
        super().__init__()
        self.vision, self.text = Vit(*vision), Text(*text)
        self.see, self.read = nn.Linear(vision[2], shared, bias=False), nn.Linear(text[2], shared, bias=False)
        self.scale = nn.Parameter(torch.tensor(2.66))

    def forward(self, pictures, ids):
        a = F.normalize(self.see(self.vision(pictures)[:, 0]), dim=-1)
        b = F.normalize(self.read(self.text(ids)[:, -1]), dim=-1)
        logits = (self.scale.exp() * a @ b.T).float()
        labels = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


B16, L16 = (224, 16, 768, 12, 12), (224, 16, 1024, 16, 24)
# the row: its model, batch, pieces, what it must be times as fast as
ROWS = {
    "gpt2_124m": ("language", (50304, 1024, 768, 12, 12), 32, 1, ("compiled", 1.15)),
    "vit_b16": ("classifier", B16, 256, 1, ("compiled", 1.15)),
    "gpt2_1558m": ("language", (50304, 1024, 1600, 25, 48), 32, 4, ("compiled", 1.05)),
    "clip_b32": ("pairs", ((224, 32, 768, 12, 12), (49408, 77, 512, 8, 12)), 4096, 1, ("compiled", 1.2)),
    "mae_vit_l": ("autoencoder", L16, 256, 1, ("compiled", 1.2)),
    "vit_ti": ("classifier", (224, 16, 192, 3, 12), 64, 1, ("eager", 2)),
    "gpt_6m": ("language", (4096, 256, 256, 8, 6), 32, 1, ("eager", 2)),
    "vit_l16": ("classifier", L16, 128, 1, ("compiled", 1.15)),
}
SPEECH = {
    "generate_124m_1": ((50304, 1024, 768, 12, 12), 1),
    "generate_124m_64": ((50304, 1024, 768, 12, 12), 64),
    "generate_1558m_1": ((50304, 1024, 1600, 25, 48), 1),
    "generate_1558m_64": ((50304, 1024, 1600, 25, 48), 64),
}
SPEECH_FLOOR = ("compiled", 1.5)


def shrink(kind, sizes, batch, pieces):
    text, vision = (96, 24, 32, 2, 2), lambda patch: (4 * patch, patch, 32, 2, 2)
    if kind == "language":
        return text, 2 * pieces
    return ((vision(32), text) if kind == "pairs" else vision(16)), 2 * pieces


def build(kind, sizes, rows, device):
    pictures = lambda s: torch.randn(rows, 3, s[0], s[0], device=device)
    ids = lambda s: torch.randint(0, s[0], (rows, s[1]), device=device)
    if kind == "language":
        return Language(*sizes).to(device), (ids(sizes), ids(sizes))
    if kind == "classifier":
        return Classifier(1000, *sizes).to(device), (pictures(sizes), torch.randint(0, 1000, (rows,), device=device))
    if kind == "autoencoder":
        order = torch.rand(rows, (sizes[0] // sizes[1]) ** 2, device=device).argsort(1)
        return Autoencoder((512, 16, 8), *sizes).to(device), (pictures(sizes), order)
    return Pairs(512, *sizes).to(device), (pictures(sizes[0]), ids(sizes[1]))


def blocks_of(model):
    return [m for m in model.modules() if isinstance(m, Block)]


class Runner:
    def __init__(self, arguments):
        self.device, self.arguments = arguments.device, arguments
        self.cuda = arguments.device == "cuda"

    def left(self):
        return self.arguments.seconds - (time.monotonic() - START)

    def wait(self):
        if self.cuda:
            torch.cuda.synchronize()

    def kernels(self):  # of attention, the fastest first to be found
        if not self.cuda:
            return {"plain": contextlib.nullcontext()}
        from torch.nn.attention import SDPBackend, sdpa_kernel

        found = {"flash": sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION])}
        if hasattr(SDPBackend, "CUDNN_ATTENTION"):
            found["cudnn"] = sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION])
        return found

    def step_of(self, model, inputs, pieces):
        adamw = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=self.cuda)

        def step():
            for _ in range(pieces):
                with torch.autocast(self.device, dtype=torch.bfloat16):
                    loss = model(*inputs) / pieces
                loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adamw.step()
            adamw.zero_grad(set_to_none=True)

        return step

    def time(self, step, most):
        for _ in range(1 if self.arguments.warm else 3):
            step()
        self.wait()
        if self.arguments.warm:
            return None
        rounds, until = [], time.monotonic() + most
        while len(rounds) < 3 or (time.monotonic() < until and len(rounds) < 10):
            begin = time.monotonic()
            for _ in range(2):
                step()
            self.wait()
            rounds.append((time.monotonic() - begin) / 2)
        return sorted(rounds)[len(rounds) // 2]

    def fastest_kernel(self, step):
        kernels = self.kernels()
        times = {}
        for name, kernel in kernels.items():
            try:
                with kernel:
                    step()
                    self.wait()
                    begin = time.monotonic()
                    step()
                    self.wait()
                    times[name] = time.monotonic() - begin
            except RuntimeError as error:
                if "out of memory" in str(error):
                    raise
        name = min(times, key=times.get)
        return name, self.kernels()[name]

    def train(self, kind, sizes, batch, pieces, again):
        rows = batch // pieces
        model, inputs = build(kind, sizes, rows, self.device)
        for block in blocks_of(model):
            block.again = again
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        step = self.step_of(model, inputs, pieces)
        name, kernel = self.fastest_kernel(step)
        out = {"attention": name, "checkpointing": again}
        with kernel:
            if not self.arguments.warm:
                out["eager"] = self.time(step, 2)
                out["eager_bytes"] = torch.cuda.max_memory_allocated() if self.cuda else None
            whole = len(blocks_of(model)) <= 12 and not again
            if whole:  # as one graph; deep models block by block, whose code is shared
                model.compile()
            else:
                for block in blocks_of(model):
                    block.compile()
            if self.cuda:
                torch.cuda.reset_peak_memory_stats()
            out["compiled"] = self.time(step, 2)
            out["compiled_bytes"] = torch.cuda.max_memory_allocated() if self.cuda else None
            out["compiled_as"] = "whole" if whole else "blocks"
        return out

    def train_in_memory(self, *row):
        try:
            return self.train(*row, False)
        except torch.cuda.OutOfMemoryError:
            pass
        torch.cuda.empty_cache()
        return self.train(*row, True)

    @torch.no_grad()
    def speak(self, sizes, batch):
        prompt, tokens = (4, 8) if self.arguments.tiny else (32, 256)
        kind = torch.bfloat16 if self.cuda else torch.float32
        text = Text(*sizes).to(self.device, kind).eval()
        room = prompt + tokens
        caches = [torch.zeros(2, batch, sizes[3], room, sizes[2] // sizes[3], device=self.device, dtype=kind)
                  for _ in text.blocks]
        places = torch.arange(room, device=self.device)
        for cache in caches if self.cuda else ():  # else no CUDA graph writes into them
            torch._dynamo.mark_static_address(cache)

        def run(ids, at):  # at: (T) positions of ids (B, T)
            x = text.words(ids) + text.positions(at)
            mask = places[None, :] <= at[:, None]
            for block, cache in zip(text.blocks, caches):
                b, t, c = x.shape
                q, k, v = (y.view(b, t, block.heads, -1).transpose(1, 2) for y in block.qkv(block.norm1(x)).split(c, 2))
                cache[0].index_copy_(2, at, k)
                cache[1].index_copy_(2, at, v)
                o = F.scaled_dot_product_attention(q, cache[0], cache[1], attn_mask=mask)
                x = x + block.projection(o.transpose(1, 2).reshape(b, t, c))
                x = x + block.down(F.gelu(block.up(block.norm2(x)), approximate="tanh"))
            return (text.norm(x[:, -1]) @ text.words.weight.T).argmax(-1, keepdim=True)

        fast = torch.compile(run, mode="reduce-overhead", fullgraph=True) if self.cuda else run
        given = torch.randint(0, sizes[0], (batch, prompt), device=self.device)

        def all_of_it(call):
            ids = run(given, places[:prompt])
            for i in range(tokens - 1):
                ids = call(ids, places[prompt + i : prompt + i + 1]).clone()
            self.wait()

        out = {"batch": batch, "tokens": tokens}
        for name, call in (("compiled", fast), ("eager", run)):
            if self.arguments.warm and name == "eager":
                continue
            all_of_it(call)
            begin = time.monotonic()
            all_of_it(call)
            out[name] = time.monotonic() - begin
        return out


def judged(name, measured, ours, floor):
    mine = ours.get(name, {})
    out = {"row": name, "peer": measured, "ours": mine.get("seconds"), "against": floor[0], "floor": floor[1]}
    theirs = (measured or {}).get(floor[0])
    out["times_as_fast"] = theirs / mine["seconds"] if theirs and mine.get("seconds") else None
    out["floor_met"] = out["times_as_fast"] >= floor[1] if out["times_as_fast"] else None
    if name == "clip_b32" and theirs and mine.get("peak_bytes") and measured.get("eager_bytes"):
        out["memory_share"] = mine["peak_bytes"] / measured["eager_bytes"]
        out["memory_floor_met"] = out["memory_share"] < 0.7
    return out


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--ours")
    arguments.add_argument("--seconds", type=float, default=1e9)
    arguments.add_argument("--only")
    arguments.add_argument("--warm", action="store_true")
    arguments.add_argument("--device", default="cuda")
    arguments.add_argument("--tiny", action="store_true")
    arguments = arguments.parse_args()
    torch.manual_seed(1)
    torch.set_float32_matmul_precision("high")
    ours = {}
    for line in open(arguments.ours) if arguments.ours else ():
        try:
            row = json.loads(line)
        except ValueError:  # of a process that was ended
            continue
        ours[row.get("row")] = row
    runner = Runner(arguments)
    print(json.dumps({"torch": torch.__version__, "cudnn": torch.backends.cudnn.version()}), flush=True)

    def attempt(name, work, floor):
        if arguments.only and name != arguments.only:
            return
        measured = None
        try:
            if runner.left() > 20:
                measured = work()
        except Exception as error:  # a row that cannot run is stated, the others still do
            measured = {"error": str(error)[:200]}
        print(json.dumps(judged(name, measured, ours, floor)), flush=True)
        torch.compiler.reset()
        if runner.cuda:
            torch.cuda.empty_cache()

    for name, (sizes, batch) in SPEECH.items():
        if arguments.tiny:
            sizes = (96, 24, 32, 2, 2)
        if name.endswith("124m_1") or name.endswith("1558m_1"):
            attempt(name, lambda: runner.speak(sizes, batch), SPEECH_FLOOR)
    for name, (kind, sizes, batch, pieces, floor) in ROWS.items():
        if arguments.tiny:
            sizes, batch = shrink(kind, sizes, batch, pieces)
        attempt(name, lambda: runner.train_in_memory(kind, sizes, batch, pieces), floor)
    for name, (sizes, batch) in SPEECH.items():
        if arguments.tiny:
            sizes = (96, 24, 32, 2, 2)
        if name.endswith("_64"):
            attempt(name, lambda: runner.speak(sizes, batch), SPEECH_FLOOR)
    print(json.dumps({"seconds": time.monotonic() - START}))


main()

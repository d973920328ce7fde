"""Writes the section of docs/figures.md on training steps on a GPU from what `tests/gpu.sh bench` left.

    gpu_figures.py bench.json > section.md
"""
import json
import sys

NAMES = {"gpt2_124m": "GPT-2 124M, T 1024", "gpt2_1558m": "GPT-2 1558M, T 1024", "vit_b16": "ViT-B/16 at 224",
         "vit_l16": "ViT-L/16 at 224", "mae_vit_l": "MAE ViT-L, 75 % masked", "clip_b32": "CLIP ViT-B/32, batch 4096",
         "joint_b": "joint, four objectives", "joint_b_lm": "its language modelling alone",
         "joint_b_caption": "its captions alone", "joint_b_contrastive": "its pairs alone", "joint_b_mae": "its MAE alone",
         "vit_ti": "ViT-Ti/16 at 224, batch 64", "gpt_6m": "GPT of 6M, T 256",
         "generate_124m_1": "generation, GPT-2 124M, 1 text", "generate_124m_64": "generation, GPT-2 124M, 64 texts",
         "generate_1558m_1": "generation, GPT-2 1558M, 1 text",
         "generate_1558m_64": "generation, GPT-2 1558M, 64 texts"}


def number(x, form="{:.3g}"):
    return "–" if x is None else form.format(x)


def met(x):
    return {True: "yes", False: "**no**", None: "–"}[x]


def main():
    run = json.load(open(sys.argv[1]))
    peers = {p["row"]: p for p in run["peers"] if "row" in p}
    torch = next((p["torch"] for p in run["peers"] if "torch" in p), "was not there")
    print(f"{run['gpu']}, {run['date']}, driver {run['driver']}; bf16; `tests/gpu.sh bench` took {run['seconds']} s. MFU is of "
          f"the stated dense peak, attention counted causal. PyTorch {torch}.\n")
    print("| | units/s | MFU | goal | met | PyTorch eager | compiled | times as fast | floor | met |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for r in run["rows"]:
        if "row" not in r:
            continue
        p = peers.get(r["row"], {})
        measured = p.get("peer") or {}
        units = r.get("units") or r["batch"] * r["tokens"]
        theirs = {k: units / measured[k] if measured.get(k) else None for k in ("eager", "compiled")}
        share = r["mfu"] if "mfu" in r else r["bandwidth_share"]
        goal = r["goal_mfu"] if "goal_mfu" in r else r["goal_share"]
        kind = "" if "mfu" in r else " of bandwidth"
        print(f"| {NAMES.get(r['row'], r['row'])} | {r['per_second']:,.0f} {r['unit']} | {100 * share:.1f} %{kind} | "
              f"{number(goal and 100 * goal)} % | {met(r['goal_met'])} | {number(theirs['eager'], '{:,.0f}')} | "
              f"{number(theirs['compiled'], '{:,.0f}')} | {number(p.get('times_as_fast'), '{:.2f}')} | "
              f"{number(p.get('floor'))} | {met(p.get('floor_met'))} |".replace("– %", "–"))
    if run.get("llmc_tokens"):
        print(f"\nllm.c in the same run, GPT-2 124M: {run['llmc_tokens']:,.0f} tokens/s.")
    share = peers.get("clip_b32", {}).get("memory_share")
    if share:
        print(f"\nCLIP's memory is {100 * share:.0f} % of PyTorch's (goal: below 70 %).")


main()

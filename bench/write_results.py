"""From pytest-benchmark files to bench/results/<device>.json and .md, and, for the CPU, to docs/operators.md.

    python bench/write_results.py FILE.json [--commit COMMIT] [--document] [--gpu]

Groups that were timed anew replace those of earlier runs; the others stay, each with its date and commit. Works
without a git checkout: on a GPU machine there may be only a copy of the files."""

import argparse
import json
import re
import time
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def facts():
    """What was measured on: device, threads, torch."""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    else:
        cpuinfo = Path("/proc/cpuinfo")
        text = cpuinfo.read_text() if cpuinfo.exists() else ""
        model, flags = (re.search(rf"^{key}\s*: (.*)$", text, re.M) for key in ("model name", "flags"))
        best = [f for f in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if flags and f in flags[1].split()]
        name = " ".join([re.sub(r"\(R\)|\(TM\)|CPU", "", model[1] if model else "CPU").strip(), *best[:1]])
    return {
        "device": " ".join(name.split()),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "gpu": torch.cuda.is_available(),
    }


def is_limit(method):
    return method.endswith("_alone")


def seconds(t):
    return f"{t:.2f} s" if t >= 1 else f"{1e3 * t:.1f} ms"


def size(n):
    return "?" if n is None else f"{n / 2**20:.0f} MiB"


def ratio(t, to):
    return f"{t / to:.2f}" if to else ""


def table(rows):
    """Markdown: one row per method, its median as a multiple of the kernel's and of the fastest limit's."""
    lines = [
        "| | | median | ± iqr | × kernel | × limit | Gop/s or GB/s | memory |",
        "|:--|:--|--:|--:|--:|--:|--:|--:|",
    ]
    groups = {}
    for r in rows:
        groups.setdefault(r["group"], []).append(r)
    for group, members in groups.items():
        kernel = next((r["median"] for r in members if r["method"] == "kernel"), None)
        limit = min((r["median"] for r in members if is_limit(r["method"])), default=None)
        for i, r in enumerate(members):
            lines.append(
                f"| {group if i == 0 else ''} | {r['method']} | {seconds(r['median'])} | {seconds(r['iqr'])} "
                f"| {ratio(r['median'], kernel)} | {ratio(r['median'], limit)} "
                f"| {format(r['gops'], '.1f') if 'gops' in r else ''} | {size(r['peak_bytes'])} |"
            )
    return lines


def summary(rows):
    """Markdown for the document: per group the kernel, the fastest peer and the limit."""
    lines = ["| | kernel | fastest peer | limit | memory |", "|:--|--:|:--|:--|--:|"]
    for group in dict.fromkeys(r["group"] for r in rows):
        members = [r for r in rows if r["group"] == group]
        kernel = next((r for r in members if r["method"] == "kernel"), None)
        if kernel is None:
            continue
        named = []
        for of in (
            [r for r in members if r["method"] != "kernel" and not is_limit(r["method"])],
            [r for r in members if is_limit(r["method"])],
        ):
            best = min(of, key=lambda r: r["median"], default=None)
            named.append(f"`{best['method']}` {best['median'] / kernel['median']:.2f} ×" if best else "")
        lines.append(
            f"| {group} | {seconds(kernel['median'])} | {named[0]} | {named[1]} | {size(kernel['peak_bytes'])} |"
        )
    return lines


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("file", type=Path, help="what pytest --benchmark-json wrote")
    p.add_argument("--commit", default="unknown")
    p.add_argument("--document", action="store_true", help="quote the table in docs/operators.md, too")
    p.add_argument("--gpu", action="store_true", help="refuse timings that are not a GPU's")
    args = p.parse_args()
    stamp = {"date": time.strftime("%Y-%m-%d"), "commit": args.commit}
    new = [
        dict(
            group=b["group"],
            name=b["name"],
            median=b["stats"]["median"],
            iqr=b["stats"]["iqr"],
            rounds=b["stats"]["rounds"],
            timer=b["options"]["timer"],
            **b["extra_info"],
            **stamp,
        )
        for b in json.loads(args.file.read_text())["benchmarks"]
        if "method" in b["extra_info"]
    ]
    if not new:
        raise SystemExit(f"error: {args.file} holds no timings")
    if args.gpu and not new[0]["gpu"]:
        raise SystemExit(f"error: torch {new[0]['torch']} sees no GPU: {args.file} holds CPU timings")
    device = new[0]["device"]
    path = HERE / "results" / (re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + ".json")
    path.parent.mkdir(exist_ok=True)
    old = json.loads(path.read_text()) if path.exists() else []
    fresh = {r["group"] for r in new}
    rows = sorted([r for r in old if r["group"] not in fresh] + new, key=lambda r: r["name"])
    path.write_text(json.dumps(rows, indent=1) + "\n")

    runs = sorted({(r["date"], r["commit"], r["torch"], r["threads"], r.get("timer", "")) for r in rows})
    text = [
        f"# {device}",
        "",
        *(
            f"{d}, commit {c}, torch {t}, {n} thread{'s' * (n > 1)}{', CPU time' * (timer == 'process_time')}  "
            for d, c, t, n, timer in runs
        ),
        "",
        "Medians of 5 rounds. `× kernel`, `× limit`: a row's time as a multiple of the kernel's and of the fastest "
        "limit's (`…_alone`). Memory: what a call holds at most beyond its inputs, its result included.",
        "",
        *table(rows),
    ]
    path.with_suffix(".md").write_text("\n".join(text) + "\n")
    print(f"wrote {path} and {path.with_suffix('.md').name}")
    if args.document:
        document = HERE.parent / "docs" / "operators.md"
        head, rest = document.read_text().split(BEGIN)
        note = f"{device}, {new[0]['threads']} threads: [every row](../bench/results/{path.stem}.md)."
        document.write_text(
            head + BEGIN + "\n" + "\n".join([*summary(rows), "", note]) + "\n" + END + rest.split(END)[1]
        )


if __name__ == "__main__":
    main()

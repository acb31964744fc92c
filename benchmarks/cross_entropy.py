"""Full cross-entropy with and without logits of all places at once: seconds and peak memory.

``python benchmarks/cross_entropy.py [places=1024] [items=1000000] [dim=64] [threads=2]
[keep=true]``

Loss and gradients of ``places`` queries over ``items`` vectors, in recs and as torch's
``F.cross_entropy(queries @ vectors.T)``, each in a process of its own, as ``kind=chunked`` and
``kind=plain`` run them: the peak is what the process takes (a GPU: what is allocated on it) beyond
what it has when the tensors are made. Seconds are the best of three after one to warm up.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from common import arguments, report

from recs.nn.losses import full_cross_entropy


def measure(kind: str, places: int, items: int, dim: int, threads: int) -> dict[str, float]:
    """Return seconds and GiB of one way, in this process."""
    torch.set_num_threads(threads)
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    torch.manual_seed(0)
    queries = torch.randn(places, dim, device=device).requires_grad_()
    vectors = torch.randn(items, dim, device=device).mul_(0.1).requires_grad_()
    targets = torch.randint(items, (places,), device=device)
    weights = torch.ones(places, device=device)

    # The peak of making the tensors is forgotten.
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**30
    else:
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident_gib("VmRSS")
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        if kind == "chunked":
            loss = full_cross_entropy(queries, targets, vectors, None, weights)
        else:
            loss = F.cross_entropy(queries @ vectors.T, targets, reduction="sum")
        torch.autograd.grad(loss, (queries, vectors))
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else _resident_gib("VmHWM")
    return {"seconds": min(seconds[1:]), "peak_gib": peak - before}


def _resident_gib(name: str) -> float:
    """Return what this process has in memory now (``VmRSS``) or had at most (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 2**20


def main() -> None:
    given = arguments("places", "items", "dim", "threads", "kind")
    sizes = [
        int(float(given.get(key, default)))
        for key, default in (("places", 1024), ("items", 1_000_000), ("dim", 64), ("threads", 2))
    ]
    if "kind" in given:
        print(json.dumps(measure(given["kind"], *sizes)))
        return
    figures: dict[str, object] = dict(
        zip(("places", "items", "dim", "threads"), sizes, strict=True)
    )
    for kind in ("chunked", "plain"):
        command = [sys.executable, __file__, f"kind={kind}"]
        command += [f"{key}={figures[key]}" for key in ("places", "items", "dim", "threads")]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        figures |= {f"{kind}_{name}": value for name, value in json.loads(output).items()}
    ratios = {
        name: float(figures[f"plain_{key}"]) / float(figures[f"chunked_{key}"])  # type: ignore[arg-type]
        for name, key in (("time", "seconds"), ("memory", "peak_gib"))
    }
    report("cross_entropy", figures, ratios, given)


if __name__ == "__main__":
    main()

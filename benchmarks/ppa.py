"""How much faster the polymerised joint map of PSP is than building it pair by pair, forward and backward, in one run.

`python -m benchmarks.ppa [--maps N] [--rounds N] [--out docs/results/ppa.json]`
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.plain.ppa import polymerised_joint_map
from benchmarks.preparation import processor
from lightning_modules.attention.ppa import PPA, broadcast

MAPS = 180  # 90 unlabelled clips of two bodies
HEADS = 4


def seconds(build: Callable[[], Tensor], gradient: Tensor, repeats: int) -> tuple[float, float]:
    """Seconds of the fastest forward and the fastest backward pass: what others do on the machine only adds."""
    forward, backward = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        result = build()
        middle = time.perf_counter()
        result.backward(gradient)
        forward.append(middle - start)
        backward.append(time.perf_counter() - middle)
    return min(forward), min(backward)


def measure(maps: int, rounds: int) -> dict[str, float]:
    """Milliseconds and ratios on one thread, after a check that both build the same map."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    joint, part, body = (torch.randn(maps, HEADS, size, size, requires_grad=True) for size in (25, 10, 5))
    ppa = PPA("ntu25", channels=HEADS, heads=HEADS)
    part_of, body_of = ppa.joint_in_part.argmax(1).tolist(), ppa.joint_in_body.argmax(1).tolist()

    def ours() -> Tensor:
        return joint + ppa.onto_joints(part, broadcast(body, ppa.part_in_body))

    def plain() -> Tensor:
        return polymerised_joint_map(joint, part, body, part_of, body_of)

    torch.testing.assert_close(ours(), plain())
    gradient = torch.randn_like(joint)
    fast, slow = seconds(ours, gradient, 5 * rounds), seconds(plain, gradient, rounds)
    return {
        "ours_forward_ms": round(1e3 * fast[0], 3),
        "ours_backward_ms": round(1e3 * fast[1], 3),
        "plain_forward_ms": round(1e3 * slow[0], 3),
        "plain_backward_ms": round(1e3 * slow[1], 3),
        "ratio_forward": round(slow[0] / fast[0], 1),
        "ratio_backward": round(slow[1] / fast[1], 1),
    }


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--maps", type=int, default=MAPS)
    parser.add_argument("--rounds", type=int, default=10, help="passes of the plain loop")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args(arguments)
    found = measure(options.maps, options.rounds)
    print(
        f"polymerised joint map, {options.maps} maps of {HEADS} heads, 25 joints: "
        f"{found['ratio_forward']:.0f} times as fast forward, {found['ratio_backward']:.0f} times backward"
    )
    result = {
        "command": f"python -m benchmarks.ppa --maps {options.maps} --rounds {options.rounds}",
        "joints": 25,
        "maps": options.maps,
        "heads": HEADS,
        "threads": 1,
        "machine": {"processor": processor(), "python": platform.python_version(), "torch": torch.__version__},
        **found,
    }
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    main()

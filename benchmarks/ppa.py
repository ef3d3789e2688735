"""How much faster the polymerised joint map of PSP is than building it pair by pair, forward and backward, in one run.

python benchmarks/ppa.py [--out FILE]
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from plain.ppa import polymerised_joint_map
from torch import Tensor

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


def measure(repeats: int) -> dict[str, float | int]:
    """Milliseconds and ratios on one thread, after a check that both build the same map."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    joint, part, body = (torch.randn(MAPS, HEADS, size, size, requires_grad=True) for size in (25, 10, 5))
    ppa = PPA("ntu25", channels=HEADS, heads=HEADS)
    part_of, body_of = ppa.joint_in_part.argmax(1).tolist(), ppa.joint_in_body.argmax(1).tolist()

    def ours() -> Tensor:
        return joint + ppa.onto_joints(part, broadcast(body, ppa.part_in_body))

    def plain() -> Tensor:
        return polymerised_joint_map(joint, part, body, part_of, body_of)

    torch.testing.assert_close(ours(), plain())
    gradient = torch.randn_like(joint)
    fast, slow = seconds(ours, gradient, 5 * repeats), seconds(plain, gradient, repeats)
    return {
        "joints": 25,
        "maps": MAPS,
        "heads": HEADS,
        "threads": 1,
        "ours_forward_ms": 1e3 * fast[0],
        "ours_backward_ms": 1e3 * fast[1],
        "plain_forward_ms": 1e3 * slow[0],
        "plain_backward_ms": 1e3 * slow[1],
        "ratio_forward": slow[0] / fast[0],
        "ratio_backward": slow[1] / fast[1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    parser.add_argument("--repeats", type=int, default=10, help="passes of the plain loop")
    arguments = parser.parse_args()
    found = measure(arguments.repeats)
    print(
        f"polymerised joint map, {found['maps']} maps of {found['heads']} heads, {found['joints']} joints: "
        f"{found['ratio_forward']:.0f} times as fast forward, {found['ratio_backward']:.0f} times backward"
    )
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

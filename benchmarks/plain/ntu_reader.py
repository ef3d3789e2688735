"""A `.skeleton` file read line by line, every number converted: the plain way, to measure and to check against."""

from pathlib import Path

import numpy as np


def read_plainly(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Joints (T, M, 25, 3) float32 and body ids (T, M) int64, -1 where a slot is empty. Trusts the file."""
    frames = []
    with path.open() as file:
        for _ in range(int(file.readline())):
            bodies = []
            for _ in range(int(file.readline())):
                body_id = int(file.readline().split()[0])
                joints = [[float(number) for number in file.readline().split()] for _ in range(int(file.readline()))]
                bodies.append((body_id, [joint[:3] for joint in joints]))
            frames.append(bodies)
    slots = max(len(bodies) for bodies in frames)
    joints = np.zeros((len(frames), slots, 25, 3), dtype=np.float32)
    body_ids = np.full((len(frames), slots), -1, dtype=np.int64)
    for frame, bodies in enumerate(frames):
        for slot, (body_id, points) in enumerate(bodies):
            body_ids[frame, slot] = body_id
            joints[frame, slot] = points
    return joints, body_ids

"""The preparation recipes for 25 joints as loops over bodies, frames and joints: slow, and written independently of
`datamodules.normalise`, so that each checks the other."""

import math

import numpy as np


def agcn_plainly(joints: np.ndarray, body_ids: np.ndarray) -> np.ndarray:
    """Joints (T, M, 25, 3), ids (T, M) -> (T, bodies, 25, 3) by the recipe of A2MC."""
    slots = [joints[:, slot].astype(float) for slot in range(min(4, joints.shape[1]))]
    bodies = sorted((body for body in slots if body.any()), key=lambda body: -_spread(body))[:2]
    bodies = [_fill(body) for body in bodies]
    for frame in range(len(joints)):
        centre = bodies[0][frame, 1].copy()
        for body in bodies:
            _shift(body[frame], centre)
    _turn_all(bodies, bodies[0][0, 1] - bodies[0][0, 0], np.array([0.0, 0.0, 1.0]))
    _turn_all(bodies, bodies[0][0, 8] - bodies[0][0, 4], np.array([1.0, 0.0, 0.0]))
    return np.stack(bodies, axis=1).astype(np.float32)


def dsta_plainly(joints: np.ndarray, body_ids: np.ndarray) -> np.ndarray:
    """Joints (T, M, 25, 3), ids (T, M) -> (T, bodies, 25, 3) by the recipe of SDS-CL and PSP."""
    bodies = [body for body in _by_id(joints.astype(float), body_ids) if body.any()]
    if len(bodies) > 1:
        bodies = _active(bodies)
    if not any(body[0].any() for body in bodies):
        frames = [frame for frame in range(len(joints)) if any(body[frame].any() for body in bodies)]
        for body in bodies:
            kept = body[frames]
            body[:] = 0
            body[: len(frames)] = kept
    centre = bodies[0][0, 0].copy()
    for body in bodies:
        for points in body:
            _shift(points, centre)
    unit = next((length for points in bodies[0] if (length := _length(points[20] - points[0])) > 0), 1.0)
    for body in bodies:
        body /= unit
    _turn_all(bodies, bodies[0][0, 20] - bodies[0][0, 0], np.array([0.0, 0.0, 1.0]))
    sideways = bodies[0][0, 5] - bodies[0][0, 20]
    sideways[2] = 0
    _turn_all(bodies, sideways, np.array([1.0, 0.0, 0.0]))
    return np.stack(bodies, axis=1).astype(np.float32)


def _spread(body: np.ndarray) -> float:
    points = np.concatenate([points for points in body if points.any()])
    return sum(points[:, axis].std() for axis in range(3))


def _fill(body: np.ndarray) -> np.ndarray:
    """Play what was seen of a body again until the clip is over."""
    frames = [points for points in body if points.any()]
    if body[0].any():
        last = max(frame for frame, points in enumerate(body) if points.any())
        frames = list(body[: last + 1])
    return np.stack([frames[frame % len(frames)] for frame in range(len(body))])


def _by_id(joints: np.ndarray, body_ids: np.ndarray) -> list[np.ndarray]:
    bodies: dict[int, np.ndarray] = {}
    for frame, ids in enumerate(body_ids.tolist()):
        taken: set[int] = set()
        for slot, body_id in enumerate(ids):
            if body_id < 0:
                continue
            while body_id in taken:
                body_id += 1
            taken.add(body_id)
            bodies.setdefault(body_id, np.zeros_like(joints[:, 0]))[frame] = joints[frame, slot]
    return list(bodies.values())


def _active(bodies: list[np.ndarray]) -> list[np.ndarray]:
    spreads = [_spread(np.stack([points - points[0] for points in body])) for body in bodies]
    kept = []
    for spread, body in sorted(zip(spreads, bodies, strict=True), key=lambda pair: -pair[0]):
        points = next(points for points in body if points.any())
        width, height = (points[:, axis].max() - points[:, axis].min() for axis in (0, 1))
        if spread >= 0.85 * max(spreads) or 0.8 * height > width:
            kept.append(body)
    return kept[:2]


def _shift(points: np.ndarray, centre: np.ndarray) -> None:
    for joint in range(len(points)):
        if points[joint].any():
            points[joint] -= centre


def _turn_all(bodies: list[np.ndarray], vector: np.ndarray, target: np.ndarray) -> None:
    matrix = _rotation(vector, target)
    for body in bodies:
        for points in body:
            for joint in range(len(points)):
                points[joint] = matrix @ points[joint]


def _rotation(vector: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Rotation of the vector onto the unit target, built as a change of basis."""
    normal = np.cross(vector, target)
    if _length(vector) < 1e-6 or _length(normal) < 1e-6:
        return np.eye(3)
    normal = normal / _length(normal)
    start = vector / _length(vector)
    before = np.stack([start, np.cross(normal, start), normal])
    after = np.stack([target, np.cross(normal, target), normal])
    return after.T @ before


def _length(vector: np.ndarray) -> float:
    return math.sqrt(sum(float(number) ** 2 for number in vector))

"""The published preparation recipes: a raw clip -> at most two bodies, in metres in the figure's own frame.

`agcn` is the recipe of A2MC (after 2s-AGCN), `dsta` that of SDS-CL and PSP (after DSTA-Net). Both work in float64 and
avoid BLAS, so that a clip gives the same bytes whatever the thread count. `kinetics` is for joints found in an image.
"""

from collections.abc import Callable

import numpy as np

from datamodules.errors import InputError
from datamodules.topology import SkeletonTopology

AGCN_SLOTS = 4  # the released code reads no more than four bodies of a frame
MAX_BODIES = 2
STILL = 0.85  # dsta: a body whose spread is below this share of the largest must look upright to stay
UPRIGHT = 0.8  # dsta: upright means that this share of its height exceeds its width
SHORT = 1e-6  # vectors shorter than this have no direction

Recipe = Callable[[np.ndarray, np.ndarray, SkeletonTopology], np.ndarray]


def agcn(joints: np.ndarray, body_ids: np.ndarray, topology: SkeletonTopology, frames: int = 0) -> np.ndarray:
    """Recipe of A2MC: bodies by slot, repeated over their gaps at the end, centred frame by frame, in metres.

    joints: (T, M, V, 3), body_ids: (T, M), not used here.
    frames: length to which the clip is repeated, if longer than T; the released files hold 300, of which a store
    needs only the first T, since those do not depend on the rest.
    Returns (max(T, frames), 1 or 2, V, 3) float32. Raises InputError where no frame holds a body.
    """
    axes = topology.agcn_axes
    if axes is None:
        raise InputError(f"recipe agcn expects a topology with its axes, found {topology.name}: choose another recipe")
    bodies = _seen(np.moveaxis(joints.astype(np.float64), 1, 0))[:AGCN_SLOTS]
    if len(bodies) > 1:
        bodies = bodies[np.argsort([-_spread(body) for body in bodies], kind="stable")[:MAX_BODIES]]
    length = max(frames, len(joints))
    bodies = np.stack([_repeated(body, length) for body in bodies])
    bodies = _centred(bodies, bodies[0, :, axes.origin, None])
    matrix = _rotation(_bone(bodies, axes.z_axis), axis=2)
    matrix = _rotation(matrix @ _bone(bodies, axes.x_axis), axis=0) @ matrix
    return _stored(bodies, matrix)


def dsta(joints: np.ndarray, body_ids: np.ndarray, topology: SkeletonTopology) -> np.ndarray:
    """Recipe of SDS-CL and PSP: bodies by tracking id, the moving or upright ones, in units of the first trunk length.

    joints: (T, M, V, 3), body_ids: (T, M), -1 where a slot is empty.
    Returns (T, 1 or 2, V, 3) float32. Raises InputError where no frame holds a body.
    """
    if topology.confidence:
        raise InputError(
            f"recipe dsta expects three axes, found a confidence in {topology.name}: choose recipe kinetics"
        )
    bodies = _seen(_by_identity(joints.astype(np.float64), body_ids))
    if len(bodies) > 1:
        bodies = bodies[_actors(bodies)]
    bodies = _from_first_frame(bodies)
    bodies = _centred(bodies, bodies[0, 0, topology.origin])
    lengths = np.linalg.norm(bodies[0, :, topology.scale[1]] - bodies[0, :, topology.scale[0]], axis=-1)
    if lengths.any():
        bodies /= lengths[lengths > 0][0]
    matrix = _rotation(_bone(bodies, topology.z_axis), axis=2)
    sideways = matrix @ _bone(bodies, topology.x_axis)
    matrix = _rotation(sideways * (1, 1, 0), axis=0) @ matrix
    return _stored(bodies, matrix)


def kinetics(joints: np.ndarray, body_ids: np.ndarray, topology: SkeletonTopology) -> np.ndarray:
    """Recipe of Skeleton-Kinetics: the two people of a frame that the detector is surest of, the image's centre at 0.

    joints: (T, M, V, 3), x to the right and y downwards as shares of the image, and the confidence; body_ids: not used.
    Returns (T, 1 or 2, V, 3) float32: x, y upwards, confidence; a joint without confidence is 0. Raises InputError
    where no frame holds a body.
    """
    if not topology.confidence:
        raise InputError(f"recipe kinetics expects a confidence, found {topology.name} without: choose another recipe")
    place, confidence = joints[..., :2].astype(np.float64), joints[..., 2:].astype(np.float64)
    place = (place - 0.5) * (1, -1) * (confidence != 0)
    people = np.concatenate([place, confidence], axis=-1)
    order = np.argsort(-confidence.sum(axis=(2, 3)), axis=1, kind="stable")[:, :MAX_BODIES]
    chosen = np.take_along_axis(people, order[:, :, None, None], axis=1).astype(np.float32)
    if not chosen.any():
        raise InputError("expected a body in at least one frame, found none: leave the clip out")
    return chosen


RECIPES: dict[str, Recipe] = {"agcn": agcn, "dsta": dsta, "kinetics": kinetics}


def _seen(bodies: np.ndarray) -> np.ndarray:
    """The bodies (M, T, V, 3) that are not empty in every frame."""
    seen = bodies[bodies.any(axis=(1, 2, 3))]
    if not len(seen):
        raise InputError("expected a body in at least one frame, found none: leave the clip out")
    return seen


def _nonempty(bodies: np.ndarray) -> np.ndarray:
    """(..., T, V, 3) -> (..., T) bool. The released code asks for a sum of 0, which a real frame may have by chance."""
    return np.asarray(bodies.any(axis=(-1, -2)))


def _spread(body: np.ndarray) -> float:
    """Sum over the axes of the standard deviation over all non-empty frames and joints of (T, V, 3)."""
    axes = body[_nonempty(body)].reshape(-1, body.shape[-1]).T.copy()  # contiguous axes: five times the speed
    return float(axes.std(axis=1).sum())


def _repeated(body: np.ndarray, length: int) -> np.ndarray:
    """(T, V, 3) -> (length, V, 3): what was seen, repeated to the end. A late body starts at once, without its gaps."""
    seen = np.flatnonzero(_nonempty(body))
    source = seen if seen[0] > 0 else np.arange(seen[-1] + 1)
    return body[source[np.arange(length) % len(source)]]


def _by_identity(joints: np.ndarray, body_ids: np.ndarray) -> np.ndarray:
    """(T, M, V, 3) by slot -> (bodies, T, V, 3) by tracking id, in the order of first appearance."""
    frame, slot = np.nonzero(body_ids >= 0)
    ids = _distinct(body_ids)
    known, first, row = np.unique(ids[frame, slot], return_index=True, return_inverse=True)
    appearance = np.argsort(np.argsort(first))
    bodies = np.zeros((len(known), len(joints), *joints.shape[2:]), dtype=joints.dtype)
    bodies[appearance[row], frame] = joints[frame, slot]
    return bodies


def _distinct(body_ids: np.ndarray) -> np.ndarray:
    """(T, M) uint64 ids in which one that occurs twice in a frame took the next number free in that frame."""
    ids = body_ids.astype(np.uint64)  # twice the range: the number after the largest id exists
    for slot in range(1, ids.shape[1]):
        while (clash := (ids[:, slot, None] == ids[:, :slot]).any(axis=1) & (body_ids[:, slot] >= 0)).any():
            ids[clash, slot] += np.uint64(1)
    return ids


def _actors(bodies: np.ndarray) -> np.ndarray:
    """Rows of (M, T, V, 3) to keep, most moving first: furniture seen as a body is still, and wider than tall."""
    spreads = np.array([_spread(body - body[:, :1]) for body in bodies])
    firsts = bodies[np.arange(len(bodies)), _nonempty(bodies).argmax(axis=1)]
    width, height, _ = np.moveaxis(np.ptp(firsts, axis=1), -1, 0)
    keep = (spreads >= STILL * spreads.max()) | (UPRIGHT * height > width)
    order = np.argsort(-spreads, kind="stable")
    return order[keep[order]][:MAX_BODIES]


def _from_first_frame(bodies: np.ndarray) -> np.ndarray:
    """(M, T, V, 3): where nobody is in frame 0, the frames with somebody are moved to the front."""
    filled = np.asarray(_nonempty(bodies).any(axis=0))
    if filled[0]:
        return bodies
    moved = np.zeros_like(bodies)
    moved[:, : filled.sum()] = bodies[:, filled]
    return moved


def _centred(bodies: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """Bodies (M, T, V, 3) minus the origin, which broadcasts to it; joints at zero are absent and stay there."""
    there = bodies.astype(bool) @ np.ones((bodies.shape[-1], 1), dtype=bool)  # `any`, at ten times its speed
    return (bodies - origin) * there


def _bone(bodies: np.ndarray, pair: tuple[int, int]) -> np.ndarray:
    """(3,) from the pair's first to its second joint, of body 0 in frame 0."""
    return bodies[0, 0, pair[1]] - bodies[0, 0, pair[0]]


def _rotation(vector: np.ndarray, axis: int) -> np.ndarray:
    """(3, 3) Rodrigues rotation that turns the vector onto a unit axis by the shortest way.

    Identity for a vector without direction, and, as released, for one that points exactly the other way.
    """
    normal = _skew(vector)[:, axis]
    length, sine = np.linalg.norm(vector), np.linalg.norm(normal)
    if length < SHORT or sine < SHORT:
        return np.eye(3)
    turn = _skew(normal / sine)
    return np.eye(3) + (sine / length) * turn + (1 - vector[axis] / length) * (turn @ turn)


def _skew(vector: np.ndarray) -> np.ndarray:
    """(3, 3) matrix whose product with a column is the cross product of the vector with it."""
    x, y, z = vector
    return np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])


def _stored(bodies: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Rotate (M, T, V, 3) and put it in the store's order, (T, M, V, 3) float32."""
    return np.einsum("mtvc,dc->tmvd", bodies, matrix).astype(np.float32)

"""How visible an attack on a skeleton is: displacement, changed bone lengths and accelerations (methods §3.2).

Every term takes the attacked and the reference clip, (N, C, T, V, M), and is a mean over clips and bodies of sums over
frames, joints (or bones) and axes.
"""

from collections.abc import Callable

from torch import Tensor

from datamodules.topology import SkeletonTopology

FRAME_TIME = 1 / 30  # seconds between two frames of a Kinect
JOINT_WEIGHT = 0.02
# Published for the 25 joints alone: these weigh twice, every joint of another skeleton weighs the same.
EMPHASISED = {"ntu25": ("right wrist", "right hand", "left hip", "left knee", "left ankle")}

# (attacked, reference, topology) -> a scalar
Perceptual = Callable[[Tensor, Tensor, SkeletonTopology], Tensor]


def _total(change: Tensor) -> Tensor:
    """Sum over axes, frames and joints, mean over clips and bodies."""
    return change.sum(dim=(1, 2, 3)).mean()


def acceleration(x: Tensor) -> Tensor:
    """(N, C, T - 2, V, M), second difference over frame time squared."""
    return (x[:, :, 2:] - 2 * x[:, :, 1:-1] + x[:, :, :-2]) / FRAME_TIME**2


def squared_bone_lengths(x: Tensor, topology: SkeletonTopology) -> Tensor:
    """(N, 1, T, bones, M) squared distance of child and parent."""
    children, parents = (list(ends) for ends in zip(*topology.bones, strict=True))
    return (x[:, :, :, children] - x[:, :, :, parents]).square().sum(1, keepdim=True)


def displacement(x: Tensor, reference: Tensor) -> Tensor:
    """Squared displacement."""
    return _total((x - reference).square())


def bone_change(x: Tensor, reference: Tensor, topology: SkeletonTopology) -> Tensor:
    """Squared change of squared bone length."""
    return _total((squared_bone_lengths(x, topology) - squared_bone_lengths(reference, topology)).square())


def acceleration_change(x: Tensor, reference: Tensor, weights: Tensor | float = 1.0) -> Tensor:
    """Squared change of acceleration; weights: (V, 1), a joint's."""
    return _total((acceleration(x) - acceleration(reference)).square() * weights)


def joint_weights(topology: SkeletonTopology, like: Tensor) -> Tensor:
    """(V, 1) weights of the acceleration term."""
    emphasised = EMPHASISED.get(topology.name, ())
    weights = [JOINT_WEIGHT * (2 if name in emphasised else 1) for name in topology.joint_names]
    return like.new_tensor(weights)[:, None]


def jerk(x: Tensor) -> Tensor:
    """Squared third difference as the released code has it: its last term ought to be subtracted."""
    third = (x[:, :, 3:] - 3 * x[:, :, 2:-1] + 3 * x[:, :, 1:-2] + x[:, :, :-3]) / FRAME_TIME**3
    return _total(third.square())


def _acc_bone(x: Tensor, reference: Tensor, topology: SkeletonTopology) -> Tensor:
    dynamics = 0.3 * acceleration_change(x, reference, joint_weights(topology, x))
    return 0.6 * (0.7 * bone_change(x, reference, topology) + dynamics) + 0.4 * displacement(x, reference)


def _acc_jerk(x: Tensor, reference: Tensor, topology: SkeletonTopology) -> Tensor:
    return 0.42 * jerk(x) + 0.18 * acceleration_change(x, reference) + 0.4 * displacement(x, reference)


# The method's is "acc_bone"; the others are the alternatives of the released code. Those of the attacked clip alone
# (smoothness, jerk) are not 0 at the reference.
PERCEPTUAL: dict[str, Perceptual] = {
    "acc_bone": _acc_bone,
    "bone": lambda x, ref, topology: 0.6 * bone_change(x, ref, topology) + 0.4 * displacement(x, ref),
    "acc": lambda x, ref, _: 0.6 * acceleration_change(x, ref) + 0.4 * displacement(x, ref),
    "acc_jerk": _acc_jerk,
    "smoothness": lambda x, ref, _: 0.6 * _total(acceleration(x).square()) + 0.4 * displacement(x, ref),
    "jerkness": lambda x, ref, _: 0.6 * jerk(x) + 0.4 * displacement(x, ref),
    "l2": lambda x, ref, _: displacement(x, ref),
}

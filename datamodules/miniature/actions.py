"""The movements of the miniature sets: which joints an action holds and moves, one role for each person in it."""

from datamodules.miniature.kinematics import Action, Pose


def _both(angles: Pose) -> Pose:
    """The same on the left arm or leg, mirrored."""
    left = {name.replace("right", "left"): (flex, -twist, -out) for name, (flex, twist, out) in angles.items()}
    return angles | left


_SEATED = {"spine base": (-12, 0, 0)} | _both({"right hip": (85, 0, 8), "right knee": (-80, 0, 0)})
_STOOPED = {"spine base": (-50, 0, 0)} | _both({"right hip": (70, 0, 0), "right knee": (-35, 0, 0)})
_STEP: Pose = {
    "right hip": (24, 0, 0), "left hip": (-24, 0, 0), "right knee": (-14, 0, 0), "left knee": (14, 0, 0),
}  # fmt: skip
_KNEES = _both({"right hip": (8, 0, 0), "right knee": (-18, 0, 0)})
_CROUCH = _both({"right hip": (28, 0, 0), "right knee": (-38, 0, 0), "right ankle": (12, 0, 0)})

DRINK = Action(
    "drink water",
    hold={"right shoulder": (45, 35, 5), "right elbow": (110, 0, 0)},
    beat={"right elbow": (14, 0, 0), "right shoulder": (8, 0, 0)},
    beats=(1, 2),
)
STAND_UP = Action("stand up", hold=_SEATED, starts=1.0, shift=(0, 0, -0.3))
SIT_DOWN = Action("sit down", hold=_SEATED, ends=1.0, shift=(0, 0, 0.3))
CLAP = Action(
    "clapping",
    hold=_both({"right shoulder": (40, 25, 0), "right elbow": (75, 0, 0)}),
    beat=_both({"right shoulder": (0, 22, 0)}),
    beats=(2, 6),
)
WAVE = Action(
    "hand waving",
    hold={"right shoulder": (5, -75, 75), "right elbow": (85, 0, 0)},
    beat={"right elbow": (28, 0, 0)},
    beats=(2, 5),
)
KICK = Action(
    "kicking something",
    hold={"right hip": (35, 0, 0), "right knee": (-12, 0, 0)},
    beat={"right hip": (38, 0, 0), "right knee": (-10, 0, 0)},
    beats=(1, 2),
)
JUMP = Action("jump up", hold=_CROUCH, beat=_CROUCH, beats=(1, 3), lift=0.22)
POINT = Action("pointing to something", hold={"right shoulder": (85, 0, 12), "right elbow": (6, 0, 0)})
SALUTE = Action("salute", hold={"right shoulder": (20, -60, 70), "right elbow": (135, 0, 0)})
PUNCH = Action(
    "punching",
    hold={"right shoulder": (60, 5, 5), "right elbow": (65, 0, 0)},
    beat={"right shoulder": (25, 0, 0), "right elbow": (-55, 0, 0)},
    beats=(1, 3),
)
RECOIL = Action("being punched", hold={"spine base": (9, 0, 0)}, beat={"spine base": (9, 0, 0)}, beats=(1, 2))
SHAKE_HANDS = Action(
    "handshaking",
    hold={"right shoulder": (42, 8, 0), "right elbow": (38, 0, 0)},
    beat={"right shoulder": (9, 0, 0), "right elbow": (9, 0, 0)},
    beats=(2, 5),
)

PICK_UP_ONE_HAND = Action("pick up with one hand", hold=_STOOPED | {"right shoulder": (75, 0, 5)})
PICK_UP_TWO_HANDS = Action("pick up with two hands", hold=_STOOPED | _both({"right shoulder": (75, 10, 5)}))
DROP_TRASH = Action("drop trash", hold={"right shoulder": (55, -10, 25), "right elbow": (15, 0, 0)})
WALK = Action(
    "walk around",
    hold=_KNEES,
    beat=_STEP | {"right shoulder": (-18, 0, 0), "left shoulder": (18, 0, 0)},
    beats=(2, 4),
    shift=(0, 0, -1.5),
)
CARRY = Action(
    "carry",
    hold=_KNEES | _both({"right shoulder": (30, 8, 5), "right elbow": (70, 0, 0)}),
    beat=_STEP,
    beats=(2, 4),
    shift=(0, 0, -1.2),
)
DONNING = Action(
    "donning",
    hold=_both({"right shoulder": (75, 30, 20), "right elbow": (95, 0, 0)}),
    beat=_both({"right shoulder": (-45, 0, 0), "right elbow": (-15, 0, 0)}),
    beats=(1, 2),
)
DOFFING = Action(
    "doffing",
    hold=_both({"right shoulder": (85, 45, 5), "right elbow": (75, 0, 0)}),
    beat=_both({"right shoulder": (55, -20, 15), "right elbow": (20, 0, 0)}),
    beats=(1, 2),
)
THROW = Action(
    "throw",
    hold={"right shoulder": (90, -30, 35), "right elbow": (70, 0, 0)},
    beat={"right shoulder": (55, 0, 0), "right elbow": (-40, 0, 0)},
    beats=(1, 2),
)

HUSH = Action("hush", hold={"right shoulder": (50, 45, 10), "right elbow": (130, 0, 0)})
SQUAT = Action("squat down", hold=_both({"right hip": (70, 0, 12), "right knee": (-105, 0, 0)}))
HANDS_UP = Action("hands up", hold=_both({"right shoulder": (150, 0, 15), "right elbow": (12, 0, 0)}))
CROSS_ARMS = Action("cross arms", hold=_both({"right shoulder": (40, 65, 5), "right elbow": (105, 0, 0)}))
ARM_CIRCLES = Action(
    "arm circles",
    hold=_both({"right shoulder": (0, 0, 85)}),
    beat=_both({"right shoulder": (35, 0, 25)}),
    beats=(2, 5),
)
RUN = Action(
    "running on the spot",
    hold=_both({"right hip": (35, 0, 0), "right knee": (-50, 0, 0), "right elbow": (85, 0, 0)}),
    beat={"right hip": (35, 0, 0), "left hip": (-35, 0, 0), "right knee": (-40, 0, 0), "left knee": (40, 0, 0)},
    beats=(3, 6),
)
SIDE_KICK = Action("side kick", hold={"right hip": (0, 0, 35)}, beat={"right hip": (0, 0, 38)}, beats=(1, 2))
HIGH_FIVE = Action(
    "high-five",
    hold={"right shoulder": (115, 0, 10), "right elbow": (40, 0, 0)},
    beat={"right shoulder": (20, 0, 0), "right elbow": (-25, 0, 0)},
    beats=(1, 1),
)

# By the numbers of NTU RGB+D; from 50 to 60 two people take part.
NTU_ACTIONS: dict[int, tuple[Action, ...]] = {
    1: (DRINK,),
    9: (STAND_UP,),
    10: (CLAP,),
    23: (WAVE,),
    24: (KICK,),
    27: (JUMP,),
    31: (POINT,),
    38: (SALUTE,),
    50: (PUNCH, RECOIL),
    58: (SHAKE_HANDS, SHAKE_HANDS),
}

# By the numbers of the half that NTU RGB+D 120 added; from 106 on two people take part.
NTU120_ACTIONS: dict[int, tuple[Action, ...]] = {
    67: (HUSH,),
    80: (SQUAT,),
    95: (HANDS_UP,),
    96: (CROSS_ARMS,),
    97: (ARM_CIRCLES,),
    99: (RUN,),
    102: (SIDE_KICK,),
    112: (HIGH_FIVE, HIGH_FIVE),
}

# By the numbers of PKU-MMD; phase 2 has no actions of two people.
PKU_ACTIONS: dict[int, tuple[Action, ...]] = {
    6: (CLAP,),
    8: (DRINK,),
    13: (WAVE,),
    14: (SHAKE_HANDS, SHAKE_HANDS),
    17: (JUMP,),
    19: (KICK,),
    25: (POINT,),
    26: (PUNCH, RECOIL),
    32: (SALUTE,),
    33: (SIT_DOWN,),
    34: (STAND_UP,),
    41: (THROW,),
}
PKU2_ACTIONS: dict[int, tuple[Action, ...]] = {
    number: roles for number, roles in PKU_ACTIONS.items() if len(roles) == 1
}

# Numbers in the range of Kinetics-400, whose own classes are others.
KINETICS_ACTIONS: dict[int, tuple[Action, ...]] = {
    3: (CLAP,),
    43: (WAVE,),
    83: (KICK,),
    123: (JUMP,),
    163: (SALUTE,),
    203: (SQUAT,),
    243: (HANDS_UP,),
    283: (ARM_CIRCLES,),
    323: (SHAKE_HANDS, SHAKE_HANDS),
    363: (PUNCH, RECOIL),
}

# By the numbers of NW-UCLA; its class labels count them from 1.
UCLA_ACTIONS: dict[int, Action] = {
    1: PICK_UP_ONE_HAND,
    2: PICK_UP_TWO_HANDS,
    3: DROP_TRASH,
    4: WALK,
    5: SIT_DOWN,
    6: STAND_UP,
    8: DONNING,
    9: DOFFING,
    11: THROW,
    12: CARRY,
}

"""Phrasings for picking up, placing and bringing objects."""

from __future__ import annotations

from edgephi.pocket.phrases.template import Group, lines

_THE = "(the|the|the|that|a|my)"


def _objects(text: str) -> tuple[str, ...]:
    return lines(text.replace("THE", _THE))


GROUPS = (
    Group(
        "pick",
        _objects("""
        pick up THE {object}
        pick THE {object} up
        pick THE {object}
        grab hold of THE {object}
        take THE {object}
        grab THE {object}
        lift THE {object}
        get hold of THE {object}
        grasp THE {object}
        lift up THE {object}
        grip THE {object}
        pick up THE {object} from the {anyplace}
        grab THE {object} from the {anyplace}
        take THE {object} (from|off) the {anyplace}
        pick THE {object} off the {anyplace}
        lift THE {object} from the {anyplace}
        close your gripper on THE {object}
        collect THE {object}
        take hold of THE {object}
        hold THE {object}
        """),
        weight=2,
    ),
    Group(
        "pick",
        lines("pick it up\npick that up\ngrab it\ntake it\ngrab that\npick this up\nlift it up"),
        weight=0.3,
    ),
    Group(
        "place",
        _objects("""
        put THE {object} on the {place}
        place THE {object} on the {place}
        put THE {object} (in|into) the {place}
        set THE {object} on the {place}
        put THE {object} down on the {place}
        drop THE {object} (in|into|on) the {place}
        place THE {object} (in|into) the {place}
        lay THE {object} on the {place}
        move THE {object} (to|onto) the {place}
        stick THE {object} in the {place}
        put THE {object} onto the {place}
        leave THE {object} on the {place}
        set THE {object} down on the {place}
        throw THE {object} (in|into) the {place}
        bring THE {object} to the {place}
        deposit THE {object} (in|on) the {place}
        THE {object} goes (in|on) the {place}
        put THE {object} by the {place}
        set down THE {object} (in|on) the {place}
        deposit THE {object} (at|into) the {place}
        rest THE {object} on the {place}
        take THE {object} to the {place}
        drop THE {object} off at the {place}
        carry THE {object} to the {place}
        stow THE {object} in the {place}
        take THE {object} over to the {place}
        take THE {object} and put it on the {place}
        (bring|carry|take) THE {object} over to the {place}
        deposit THE {object} by the {place}
        """),
        weight=2,
    ),
    Group(
        "place",
        lines("""
        put it on the {place}
        place it on the {place}
        put it (in|into) the {place}
        set it [down] on the {place}
        put it down on the {place}
        drop it (in|into|on) the {place}
        place it (in|into) the {place}
        put that on the {place}
        """),
        weight=0.6,
    ),
    Group(
        "bring",
        _objects("""
        bring me THE {object}
        bring THE {object} [here]
        fetch [me] THE {object}
        bring THE {object} over [here]
        get me THE {object}
        hand me THE {object}
        give me THE {object}
        pass me THE {object}
        (i need|i want|i would like) THE {object}
        could i have THE {object}
        bring me THE {object} from the {anyplace}
        go and get THE {object}
        bring me THE {object} from the {anyroom}
        get me THE {object} from the {anyroom}
        fetch THE {object} from the {anyroom}
        get THE {object} for me
        deliver THE {object} to me
        bring THE {object} to me
        go get [me] THE {object}
        can i have THE {object}
        may i have THE {object}
        i could use THE {object}
        find me THE {object}
        could you hand me THE {object}
        go fetch THE {object}
        get THE {object}
        bring over THE {object}
        i could really use THE {object}
        i could do with THE {object}
        i could use THE {object} right now
        """),
        weight=2,
    ),
)

"""Phrasings for what opens and closes: blinds, curtains, garage doors, locks."""

from __future__ import annotations

from edgephi.pocket.phrases.template import Group, lines

GROUPS = (
    Group(
        "open_cover",
        lines("""
        open the {cover}
        raise the {cover}
        pull up the {cover}
        put the {cover} up
        {cover} up
        open all [the] {cover}
        open up the {cover}
        {cover} open
        draw back the {cover}
        the {cover} should be open
        roll up the {cover}
        i want the {cover} open
        """),
        weight=0.8,
    ),
    Group(
        "open_cover",
        lines("""
        open the {room} {cover}
        open the {cover} in the {room}
        raise the {room} {cover}
        pull up the {room} {cover}
        raise the {cover} in the {room}
        put the {room} {cover} up
        {room} {cover} up
        open up the {room} {cover}
        {room} {cover} open
        roll up the {cover} in the {room}
        pull up the {cover} in the {room}
        let some light in open the {room} {cover}
        i want the {room} {cover} open
        """),
        weight=1.5,
    ),
    Group(
        "open_cover",
        lines("""
        open the garage [door]
        open up the garage [door]
        raise the garage door
        garage door open
        garage door up
        open my garage [door]
        can you get the garage door open
        """),
        {"device": "garage_door"},
        weight=0.6,
    ),
    Group(
        "close_cover",
        lines("""
        close the {cover}
        lower the {cover}
        pull down the {cover}
        put the {cover} down
        shut the {cover}
        {cover} down
        close all [the] {cover}
        {cover} closed
        draw the {cover}
        the {cover} should be closed
        roll down the {cover}
        i want the {cover} (closed|shut)
        """),
        weight=0.8,
    ),
    Group(
        "close_cover",
        lines("""
        close the {room} {cover}
        close the {cover} in the {room}
        lower the {room} {cover}
        pull down the {room} {cover}
        lower the {cover} in the {room}
        shut the {room} {cover}
        put the {room} {cover} down
        {room} {cover} down
        shut the {cover} in the {room}
        roll down the {cover} in the {room}
        pull down the {cover} in the {room}
        the sun is too bright close the {room} {cover}
        i want the {room} {cover} (closed|shut)
        """),
        weight=1.5,
    ),
    Group(
        "close_cover",
        lines("""
        close the garage [door]
        shut the garage [door]
        lower the garage door
        garage door (closed|shut)
        garage door down
        close my garage [door]
        can you get the garage door closed
        """),
        {"device": "garage_door"},
        weight=0.6,
    ),
    Group(
        "set_cover",
        lines("""
        open the {cover} to {percent}
        set the {cover} to {percent}
        put the {cover} (at|to) {percent}
        move the {cover} to {percent}
        {cover} to {percent}
        {cover} at {percent}
        open the {cover} {percent}
        raise the {cover} to {percent}
        lower the {cover} to {percent}
        open the {cover} {percent} [of the] way
        adjust the {cover} to {percent}
        open the {cover} about {percent}
        open the {cover} about {percent} [of the] way
        put the {cover} {percent} of the way (up|open)
        raise the {cover} {percent} of the way
        close the {cover} to {percent}
        i want the {cover} {percent} open
        """),
        {"unit": "percent"},
    ),
    Group(
        "set_cover",
        lines("""
        open the {room} {cover} to {percent}
        set the {room} {cover} to {percent}
        put the {room} {cover} (at|to) {percent}
        move the {room} {cover} to {percent}
        {room} {cover} to {percent}
        open the {cover} in the {room} to {percent}
        set the {cover} in the {room} to {percent}
        open the {room} {cover} {percent}
        raise the {room} {cover} to {percent}
        adjust the {room} {cover} to {percent}
        lower the {cover} in the {room} to {percent}
        open the {room} {cover} about {percent}
        open the {room} {cover} {percent} of the way
        put the {room} {cover} {percent} of the way up
        open the {cover} in the {room} about {percent}
        i want the {room} {cover} {percent} open
        """),
        {"unit": "percent"},
        weight=1.5,
    ),
    Group(
        "set_cover",
        lines("""
        open the garage door to {percent}
        set the garage door to {percent}
        open the garage door {percent}
        put the garage door at {percent}
        garage door to {percent}
        """),
        {"unit": "percent", "device": "garage_door"},
        weight=0.5,
    ),
    Group(
        "lock",
        lines("""
        lock the {door}
        lock up the {door}
        {door} lock
        make sure the {door} is locked
        lock my {door}
        secure the {door}
        bolt the {door}
        the {door} should be locked
        (i want|i need) the {door} locked
        put the lock on the {door}
        can i have the {door} locked
        engage the lock on the {door}
        activate the {door} lock
        engage the {door} lock
        close and lock the {door}
        keep the {door} locked
        be sure the {door} is locked
        make sure that the {door} is locked
        make sure you lock the {door}
        see that the {door} is locked
        get the {door} locked
        make certain the {door} is locked
        i'd like the {door} locked
        """),
        weight=2,
    ),
    Group(
        "lock",
        lines("""
        lock all [of] [the] doors
        lock every door
        lock up the house
        make sure all [the] doors are locked
        all doors locked
        lock all the doors in the house
        secure all the doors
        lock everything
        make sure that all [the] doors are locked
        be sure every door is locked
        make sure the house is locked
        get all the doors locked
        """),
        {"target": "all"},
        weight=0.6,
    ),
    Group(
        "lock",
        lines(
            "lock the door\nlock up\nlock it\nlock my door\nthe door should be locked\nlock that door\n"
            "lock up for the night\nlock up now"
        ),
        weight=0.4,
    ),
    Group(
        "unlock",
        lines("""
        unlock the {door}
        {door} unlock
        open the {door} lock
        make sure the {door} is unlocked
        unlock my {door}
        undo the lock on the {door}
        unbolt the {door}
        the {door} should be unlocked
        (i want|i need) the {door} unlocked
        release the lock on the {door}
        take the lock off the {door}
        remove the lock from the {door}
        release the {door}
        disengage the {door} lock
        deactivate the {door} lock
        release the {door} lock
        let me in [through] the {door} unlock it
        keep the {door} unlocked
        be sure the {door} is unlocked
        make sure that the {door} is unlocked
        make sure you unlock the {door}
        see that the {door} is unlocked
        get the {door} unlocked
        make certain the {door} is unlocked
        i'd like the {door} unlocked
        """),
        weight=2,
    ),
    Group(
        "unlock",
        lines("""
        unlock all [of] [the] doors
        unlock every door
        make sure all [the] doors are unlocked
        all doors unlocked
        unlock all the doors in the house
        unlock everything
        make sure that all [the] doors are unlocked
        be sure every door is unlocked
        get all the doors unlocked
        """),
        {"target": "all"},
        weight=0.6,
    ),
    Group(
        "unlock",
        lines("unlock the door\nunlock\nunlock it\nunlock my door\nthe door should be unlocked\nunlock that door"),
        weight=0.4,
    ),
)

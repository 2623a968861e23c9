"""Phrasings for a robot's motion and for vacuuming."""

from __future__ import annotations

from edgephi.pocket.phrases.template import Group, lines

_GO = "(move|go|drive|roll)"


def _moves(word: str) -> tuple[str, ...]:
    """Sentences for moving along the direction that ``word`` spells."""
    return lines(f"""
        {_GO} {word} {{distance}}
        {word} {{distance}}
        {_GO} {{distance}} {word}
        {{distance}} {word}
        take {{steps}} {word}
        {_GO} {word} by {{distance}}
        {_GO} {word}
        {_GO} {word} [a bit|a little]
        travel {word} {{distance}}
        travel {{distance}} {word}
        {_GO} {word} for {{distance}}
        advance {{distance}} {word}
        """)


def _turns(word: str) -> tuple[str, ...]:
    """Sentences for turning towards ``word``."""
    return lines(f"""
        turn {word} {{angle}}
        turn {{angle}} [to the] {word}
        turn [to the] {word} [by] {{angle}}
        rotate {{angle}} [to the] {word}
        rotate {word} [by] {{angle}}
        turn [to the] {word}
        rotate [to the] {word}
        spin {word} {{angle}}
        make a {word} turn
        make a {{angle}} turn to the {word}
        {word} {{angle}}
        turn to your {word}
        make a {{angle}} {word} turn
        swing {word} {{angle}}
        pivot {{angle}} [to the] {word}
        pivot {word} [by] {{angle}}
        take a {word} turn
        face {word}
        """)


GROUPS = (
    Group("move", _moves("(forward|forward|forwards|ahead|straight ahead)"), {"direction": "forward"}, weight=1.5),
    Group("move", _moves("(back|backward|backwards)"), {"direction": "back"}),
    Group(
        "move",
        lines("""
        back up {distance}
        back off {distance}
        reverse {distance}
        back up by {distance}
        reverse by {distance}
        back up [a bit|a little]
        go in reverse {distance}
        """),
        {"direction": "back"},
        weight=0.4,
    ),
    Group(
        "move",
        lines("""
        advance {distance}
        advance by {distance}
        come forward {distance}
        go on for {distance}
        advance [a bit|a little]
        keep going for {distance}
        go on {distance}
        continue for {distance}
        keep on going for {distance}
        keep moving for {distance}
        """),
        {"direction": "forward"},
        weight=0.4,
    ),
    Group("move", _moves("([to the] left|sideways left)"), {"direction": "left"}, weight=0.5),
    Group("move", _moves("([to the] right|sideways right)"), {"direction": "right"}, weight=0.5),
    Group("turn", _turns("left"), {"direction": "left", "unit": "degree"}),
    Group("turn", _turns("right"), {"direction": "right", "unit": "degree"}),
    Group(
        "turn",
        lines("""
        turn left a quarter [turn]
        make a quarter turn [to the] left
        a quarter turn [to the] left
        quarter turn to the left
        rotate left a quarter turn
        """),
        {"direction": "left", "unit": "degree", "value": 90},
        weight=0.15,
    ),
    Group(
        "turn",
        lines("""
        turn right a quarter [turn]
        make a quarter turn [to the] right
        a quarter turn [to the] right
        quarter turn to the right
        rotate right a quarter turn
        """),
        {"direction": "right", "unit": "degree", "value": 90},
        weight=0.15,
    ),
    Group(
        "turn",
        lines("""
        turn around
        spin around
        turn all the way around
        turn yourself around
        rotate around
        make a u turn
        turn back around
        face the other way
        turn round
        turn right round
        spin yourself around
        turn yourself round
        look behind you
        do a u turn
        turn round and face the other way
        """),
        {"direction": "around", "unit": "degree"},
        weight=0.4,
    ),
    Group(
        "turn",
        lines("""
        turn around {angle}
        turn {angle}
        rotate {angle}
        spin {angle}
        rotate by {angle}
        turn by {angle}
        spin around {angle}
        """),
        {"direction": "around", "unit": "degree"},
        weight=0.4,
    ),
    Group(
        "stop",
        lines("""
        stop
        stop moving
        stop right there
        stop (right now|immediately)
        halt
        freeze
        stop now
        stay where you are
        stand still
        hold it
        emergency stop
        stop driving
        stop it
        hold still
        stay there
        stop stop
        brake
        hold on stop
        stay
        stop where you are
        stop everything
        abort
        hold everything
        whoa stop
        wait stop
        quit moving
        abort (now|that|the mission)
        no stop
        stop please stop
        hold your position
        stop at once
        whoa
        abort mission
        hold it there
        hold it right there
        now hold it
        stop and hold it there
        """),
    ),
    Group(
        "dock",
        lines("""
        dock
        go [back] to the (dock|charger)
        go [back] home
        return to the (dock|charger|base|docking station|charging station)
        go [back] to your (dock|charger|base|charging station)
        go charge [yourself]
        return home
        dock yourself
        return to base
        charge yourself
        go [back] to the charging station
        drive [back] to the (dock|base|docking station)
        start charging
        recharge
        go and charge
        send the robot [back] to the dock
        back to the (dock|base)
        return to your (dock|charger|base)
        go recharge [yourself]
        send the vacuum [back] home
        park at the charger
        your battery is low go charge
        go and charge your battery
        charge your battery
        you need to charge go to the dock
        recharge your battery
        send yourself [back] to the dock
        send the robot home
        send the vacuum to the (dock|charger)
        go back and charge
        plug yourself in
        you are low on battery go charge
        go sit on your charger
        go charge your battery
        send the robot to the (charger|base)
        send yourself home
        send the robot back to its (dock|base)
        charge yourself now
        you can charge yourself
        """),
    ),
    Group(
        "go_to",
        lines("""
        go to the {spot}
        drive to the {spot}
        move to the {spot}
        drive over to the {spot}
        navigate to the {spot}
        come to the {spot}
        go into the {spot}
        head to the {spot}
        go over to the {spot}
        find your way to the {spot}
        travel to the {spot}
        come over to the {spot}
        (i need you|i want you) in the {spot}
        drive into the {spot}
        walk to the {spot}
        take yourself to the {spot}
        return to the {spot}
        meet me (in|at) the {spot}
        proceed to the {spot}
        go back to the {spot}
        go and wait (in|at|by) the {spot}
        wait for me (in|at|by) the {spot}
        head over to the {spot}
        wait (in|at|by) the {spot}
        go wait for me (in|at|by) the {spot}
        get yourself to the {spot}
        bring yourself to the {spot}
        drive yourself to the {spot}
        please be in the {spot}
        i need you at the {spot}
        drive over to the {spot} [and wait]
        come over here to the {spot}
        make your way to the {spot}
        find your way over to the {spot}
        find the {spot}
        make your way over to the {spot}
        """),
        weight=2,
    ),
    Group(
        "vacuum_start",
        lines("""
        vacuum the {room}
        clean the {room}
        vacuum the {room} floor
        clean the floor in the {room}
        start vacuuming the {room}
        start cleaning the {room}
        sweep the {room}
        hoover the {room}
        run the vacuum in the {room}
        the {room} is dirty
        the {room} needs (vacuuming|cleaning)
        start the vacuum in the {room}
        clean up the {room}
        the {room} is dirty clean it
        vacuum in the {room}
        go vacuum the {room}
        go clean the {room}
        the {room} floor is dirty
        it's dirty in the {room}
        the {room} is [so|very] (dusty|messy)
        there is (dirt|dust) in the {room}
        there are crumbs (in|all over) the {room}
        the {room} looks dirty
        the {room} is a mess
        there (is dirt|are crumbs|is sand) on the floor in the {room}
        crumbs in the {room}
        i see (crumbs|dirt|dust) in the {room}
        there is (sand|dirt|dust) all over the {room}
        someone left crumbs in the {room}
        """),
        weight=1.5,
    ),
    Group(
        "vacuum_start",
        lines("""
        start vacuuming
        start cleaning
        vacuum
        start the vacuum
        start the vacuum cleaner
        resume (vacuuming|cleaning)
        turn on the vacuum
        vacuum now
        clean the floor
        run the vacuum
        continue (vacuuming|cleaning)
        begin (vacuuming|cleaning)
        vacuum the floor
        keep (vacuuming|cleaning)
        begin to vacuum
        start to clean
        """),
    ),
    Group(
        "vacuum_start",
        lines("""
        vacuum the whole house
        clean the whole house
        vacuum everywhere
        clean every room
        vacuum every room
        vacuum all [the] rooms
        clean everywhere
        clean all [the] rooms
        vacuum the (entire house|house)
        """),
        {"target": "all"},
        weight=0.5,
    ),
    Group(
        "vacuum_pause",
        lines("""
        pause the vacuum
        stop vacuuming
        pause vacuuming
        stop the vacuum [cleaner]
        pause (the cleaning|cleaning)
        stop cleaning
        turn off the vacuum [cleaner]
        hold the vacuum
        vacuum off
        turn the vacuum off
        pause the vacuum cleaner
        take a break from (vacuuming|cleaning)
        interrupt the (vacuuming|cleaning)
        stop the cleaning
        vacuum pause
        that is enough (vacuuming|cleaning)
        quit (vacuuming|cleaning)
        put the vacuum on pause
        no more (vacuuming|cleaning)
        enough (vacuuming|cleaning)
        that's enough (vacuuming|cleaning)
        no need to (vacuum|clean) anymore
        stop the vacuum for (a moment|now)
        pause the vacuum for (a moment|a minute)
        stop (vacuuming|cleaning) for (a moment|now|today)
        that is enough cleaning for today
        you can stop (vacuuming|cleaning)
        you don't need to (vacuum|clean) anymore
        no need to (vacuum|clean) any more
        there is no need to (vacuum|clean) now
        no need for more (vacuuming|cleaning)
        """),
    ),
)

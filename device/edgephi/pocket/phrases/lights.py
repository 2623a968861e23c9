"""Phrasings for lights: on, off, brightness, colour."""

from __future__ import annotations

from edgephi.pocket.phrases.template import Group, lines

_LAMP = "(light|light|lights|lamp|lamps)"


def _lamps(text: str) -> tuple[str, ...]:
    return lines(text.replace("LAMP", _LAMP))


GROUPS = (
    Group(
        "light_on",
        _lamps("""
        turn on the {room} LAMP
        turn the {room} LAMP on
        switch on the {room} LAMP
        put the {room} LAMP on
        switch the {room} LAMP on
        {room} LAMP on
        LAMP on in the {room}
        turn on the LAMP in the {room}
        turn the LAMP on in the {room}
        switch the LAMP in the {room} on
        put on the {room} LAMP
        light up the {room}
        i need (light|some light) in the {room}
        it is too dark in the {room} turn on the LAMP
        make it bright in the {room}
        (i want|i'd like) the {room} LAMP on
        activate the {room} LAMP
        the {room} LAMP should be on
        enable the LAMP in the {room}
        illuminate the {room}
        can i have the {room} LAMP on
        power on the {room} LAMP
        get the {room} LAMP on
        turn {room} LAMP on
        turn on {room} LAMP
        (i am|i'm) going (to|into) the {room} turn on the LAMP
        get the LAMP in the {room}
        i need the {room} LAMP on
        let's have the {room} LAMP on
        it's dark in the {room}
        get me some light in the {room}
        hit the {room} LAMP
        we need light in the {room}
        """),
        weight=3,
    ),
    Group(
        "light_on",
        _lamps("""
        turn on the LAMP
        turn the LAMP on
        switch on the LAMP
        put the LAMP on
        switch the LAMP on
        LAMP on
        lights on
        it's (too|so) dark in here
        give me [some] light
        i need [some] light
        make it brighter in here turn on the light
        put on the LAMP
        light on
        turn on a LAMP
        power on the LAMP
        i can't see anything turn on the LAMP
        let there be light
        i want [some] light
        we need [some] light in here
        it is dark in here
        i cannot see anything turn the LAMP on
        i need the LAMP on
        i can't see a thing turn on the light
        """),
    ),
    Group(
        "light_on",
        _lamps("""
        turn on all [of] [the] lights
        turn all [of] the lights on
        switch on every (light|lamp)
        switch all [the] (lights|lamps) on
        all lights on
        every light on
        turn on the lights everywhere
        lights on in the whole house
        turn on the lights in every room
        turn on all the lights in the house
        light up the (whole|entire) house
        turn on all the lights (upstairs|downstairs|upstairs and downstairs)
        every lamp in the house on
        turn on everything all the lights
        """),
        {"target": "all"},
        weight=0.7,
    ),
    Group(
        "light_off",
        _lamps("""
        turn off the {room} LAMP
        turn the {room} LAMP off
        switch off the {room} LAMP
        put the {room} LAMP off
        switch the {room} LAMP off
        {room} LAMP off
        LAMP off in the {room}
        turn off the LAMP in the {room}
        turn the LAMP off in the {room}
        switch the LAMP in the {room} off
        put out the {room} LAMP
        kill the {room} LAMP
        shut off the {room} LAMP
        make it dark in the {room}
        no light in the {room}
        (i want|i'd like) the {room} LAMP off
        deactivate the {room} LAMP
        the {room} LAMP should be off
        disable the LAMP in the {room}
        i don't need the {room} LAMP anymore
        can i have the {room} LAMP off
        power off the {room} LAMP
        i (left|forgot) the {room} LAMP on turn it off
        turn {room} LAMP off
        turn off {room} LAMP
        cut the LAMP in the {room}
        (i am|i'm) leaving the {room} turn off the LAMP
        nobody is in the {room} turn off the LAMP
        switch off everything in the {room} i mean the LAMP
        it's too bright in the {room} turn off the LAMP
        i want it dark in the {room}
        lights out in the {room}
        (no one|nobody) is in the {room} switch off the LAMP
        we left the {room} turn the LAMP off
        turn the {room} LAMP off nobody is there
        """),
        weight=3,
    ),
    Group(
        "light_off",
        _lamps("""
        turn off the LAMP
        turn the LAMP off
        switch off the LAMP
        put the LAMP off
        switch the LAMP off
        LAMP off
        lights off
        lights out
        kill the LAMP
        shut off the LAMP
        put out the LAMP
        make it dark in here
        light off
        turn that LAMP off
        power off the LAMP
        it is too bright turn off the LAMP
        """),
    ),
    Group(
        "light_off",
        _lamps("""
        turn off all [of] [the] lights
        turn all [of] the lights off
        switch off every (light|lamp)
        switch all [the] (lights|lamps) off
        all lights off
        every light off
        turn off the lights everywhere
        lights off in the whole house
        turn off the lights in every room
        turn off all the lights in the house
        make the (whole|entire) house dark
        turn off all the lights (upstairs|downstairs|upstairs and downstairs)
        every lamp in the house off
        turn off everything all the lights
        """),
        {"target": "all"},
        weight=0.7,
    ),
    Group(
        "set_light",
        _lamps("""
        set the {room} LAMP to {percent}
        turn the {room} LAMP down to {percent}
        dim the {room} LAMP to {percent}
        turn the {room} LAMP (up|down) to {percent}
        set the {room} brightness to {percent}
        set the brightness (in|of) the {room} to {percent}
        {room} LAMP to {percent}
        {room} LAMP at {percent}
        put the {room} LAMP (at|to) {percent}
        make the {room} LAMP {percent}
        change the {room} LAMP to {percent}
        adjust the {room} LAMP to {percent}
        turn the {room} LAMP up to {percent}
        set the LAMP in the {room} to {percent}
        dim the LAMP in the {room} to {percent}
        brighten the {room} LAMP to {percent}
        i want the {room} LAMP at {percent}
        {percent} brightness in the {room}
        bring the {room} LAMP (up|down) to {percent}
        lower the {room} LAMP to {percent}
        raise the {room} LAMP to {percent}
        {room} brightness {percent}
        turn on the {room} LAMP at {percent}
        set {room} LAMP to {percent}
        """),
        {"unit": "percent"},
        weight=3,
    ),
    Group(
        "set_light",
        _lamps("""
        set the LAMP to {percent}
        dim the LAMP to {percent}
        turn the LAMP (up|down) to {percent}
        lights to {percent}
        lights at {percent}
        set [the] brightness to {percent}
        brightness {percent}
        put the LAMP (at|to) {percent}
        make the LAMP {percent}
        make the LAMP {percent} bright
        {percent} brightness
        """),
        {"unit": "percent"},
    ),
    Group(
        "set_light",
        _lamps("""
        set all [the] lights to {percent}
        dim all [the] lights to {percent}
        turn all the lights (up|down) to {percent}
        all lights at {percent}
        all lights to {percent}
        set every light to {percent}
        set the lights in the whole house to {percent}
        put every light at {percent}
        """),
        {"unit": "percent", "target": "all"},
        weight=0.7,
    ),
    Group(
        "change_light",
        _lamps("""
        make the {room} LAMP [a bit|a little] brighter
        brighten the {room} LAMP
        turn up the {room} LAMP
        increase the {room} brightness
        turn the {room} LAMP up [a bit|a little]
        raise the {room} LAMP
        more light in the {room}
        increase the brightness in the {room}
        {room} LAMP (up|brighter)
        brighten the LAMP in the {room}
        the {room} is too dark make it brighter
        make it brighter in the {room}
        i want the {room} brighter
        """),
        {"direction": "up", "unit": "percent"},
    ),
    Group(
        "change_light",
        _lamps("""
        make the {room} LAMP [a bit|a little] darker
        dim the {room} LAMP
        turn down the {room} LAMP
        decrease the {room} brightness
        turn the {room} LAMP down [a bit|a little]
        lower the {room} LAMP
        less light in the {room}
        decrease the brightness in the {room}
        {room} LAMP (down|dimmer)
        dim the LAMP in the {room}
        the {room} is too bright make it dimmer
        make it (dimmer|darker) in the {room}
        reduce the {room} brightness
        make the {room} LAMP dimmer
        """),
        {"direction": "down", "unit": "percent"},
    ),
    Group(
        "change_light",
        _lamps("""
        make the {room} LAMP {percent} brighter
        brighten the {room} LAMP by {percent}
        turn up the {room} LAMP by {percent}
        increase the {room} brightness by {percent}
        turn the {room} LAMP up by {percent}
        raise the {room} LAMP by {percent}
        {percent} more light in the {room}
        increase the brightness in the {room} by {percent}
        {room} LAMP up by {percent}
        raise the brightness of the {room} by {percent}
        raise the {room} brightness by {percent}
        raise the brightness in the {room} by {percent}
        make it {percent} brighter in the {room}
        """),
        {"direction": "up", "unit": "percent"},
        weight=0.7,
    ),
    Group(
        "change_light",
        _lamps("""
        make the {room} LAMP {percent} darker
        dim the {room} LAMP by {percent}
        turn down the {room} LAMP by {percent}
        decrease the {room} brightness by {percent}
        turn the {room} LAMP down by {percent}
        lower the {room} LAMP by {percent}
        {percent} less light in the {room}
        decrease the brightness in the {room} by {percent}
        {room} LAMP down by {percent}
        reduce the brightness of the {room} by {percent}
        reduce the {room} brightness by {percent}
        lower the brightness in the {room} by {percent}
        make it {percent} darker in the {room}
        """),
        {"direction": "down", "unit": "percent"},
        weight=0.7,
    ),
    Group(
        "change_light",
        _lamps("""
        make it brighter [in here]
        brighter
        brighten the LAMP
        turn up the LAMP
        turn the LAMP up
        make the LAMP brighter
        more light
        increase the brightness
        a bit brighter
        """),
        {"direction": "up", "unit": "percent"},
        weight=0.6,
    ),
    Group(
        "change_light",
        _lamps("""
        make it (darker|dimmer) [in here]
        dimmer
        dim the LAMP
        turn down the LAMP
        turn the LAMP down
        make the LAMP dimmer
        less light
        decrease the brightness
        a bit dimmer
        """),
        {"direction": "down", "unit": "percent"},
        weight=0.6,
    ),
    Group(
        "change_light",
        lines("brighten the lights by {percent}\nincrease the brightness by {percent}\nlights up by {percent}"),
        {"direction": "up", "unit": "percent"},
        weight=0.3,
    ),
    Group(
        "change_light",
        lines("dim the lights by {percent}\ndecrease the brightness by {percent}\nlights down by {percent}"),
        {"direction": "down", "unit": "percent"},
        weight=0.3,
    ),
    Group(
        "light_color",
        _lamps("""
        make the {room} LAMP {lcolor}
        turn the {room} LAMP {lcolor}
        set the {room} LAMP to {lcolor}
        change the {room} LAMP to {lcolor}
        {room} LAMP {lcolor}
        change the color of the {room} LAMP to {lcolor}
        set the colour of the {room} LAMP to {lcolor}
        put the {room} LAMP (on|to) {lcolor}
        i want {lcolor} light in the {room}
        make the {room} {lcolor}
        set the {room} color to {lcolor}
        (i want|i'd like) the {room} LAMP (to be|in) {lcolor}
        {lcolor} light in the {room}
        switch the {room} LAMP to {lcolor}
        change the {room} LAMP color to {lcolor}
        turn the LAMP in the {room} {lcolor}
        set the LAMP in the {room} to {lcolor}
        """),
        weight=3,
    ),
    Group(
        "light_color",
        _lamps("""
        make the LAMP {lcolor}
        turn the LAMP {lcolor}
        set the LAMP to {lcolor}
        change the LAMP to {lcolor}
        lights {lcolor}
        change the [light] color to {lcolor}
        i want {lcolor} light
        set the light colo(r|ur) to {lcolor}
        {lcolor} light
        """),
    ),
    Group(
        "light_color",
        _lamps("""
        make all [the] lights {lcolor}
        turn all the lights {lcolor}
        set all [the] lights to {lcolor}
        change all the lights to {lcolor}
        all lights {lcolor}
        make every light {lcolor}
        """),
        {"target": "all"},
        weight=0.5,
    ),
)

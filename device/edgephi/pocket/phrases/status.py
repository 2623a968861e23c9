"""Phrasings for status questions and scenes."""

from __future__ import annotations

from edgephi.pocket.phrases.template import Group, lines

GROUPS = (
    Group(
        "get_battery",
        lines("""
        what is your battery level
        how much battery do you have [left]
        battery level
        how is your battery
        what's the battery [level|status]
        battery status
        how much charge do you have [left]
        what is your charge
        are you charged
        is your battery (low|full|empty)
        do you need to charge
        how full is your battery
        check [the|your] battery
        how many percent battery do you have
        report your battery [level]
        tell me your battery level
        what percentage is your battery [at]
        do you have enough battery
        is the battery (low|full|empty)
        how much battery is left
        """),
    ),
    Group(
        "get_lock",
        lines("""
        is the {door} locked
        is the {door} unlocked
        did i lock the {door}
        have i locked the {door}
        is my {door} locked
        check if the {door} is locked
        what is the status of the {door} lock
        tell me if the {door} is locked
        {door} lock status
        did (anyone|somebody|we) lock the {door}
        check the {door} lock
        check whether the {door} is locked
        is the lock on the {door} closed
        can you see if the {door} is locked
        do you know if the {door} is locked
        was the {door} locked
        have you locked the {door}
        has the {door} been locked
        did you lock the {door}
        was the {door} left (unlocked|open)
        is the {door} still (locked|unlocked)
        have we locked the {door}
        did i leave the {door} unlocked
        did i remember to lock the {door}
        """),
        weight=2,
    ),
    Group(
        "get_lock",
        lines("""
        are all [the] doors locked
        are the doors locked
        check if all [the] doors are locked
        is every door locked
        is the house locked [up]
        did i lock all the doors
        are all the doors in the house locked
        """),
        {"target": "all"},
        weight=0.5,
    ),
    Group(
        "get_lock",
        lines("is the door locked\ndid i lock the door\nis the door unlocked\ncheck if the door is locked"),
        weight=0.3,
    ),
    Group(
        "get_temperature",
        lines("""
        what is the temperature in the {room}
        how (warm|hot|cold) is it in the {room}
        what's the {room} temperature
        how warm is the {room}
        tell me the temperature in the {room}
        {room} temperature
        how cold is the {room}
        what temperature is it in the {room}
        check the {room} temperature
        how many degrees is it in the {room}
        what temperature is the {room} [at]
        is it (cold|warm|hot) in the {room}
        temperature in the {room}
        """),
        weight=1.5,
    ),
    Group(
        "get_temperature",
        lines("""
        what is the temperature [in here|inside]
        how (warm|hot|cold) is it [in here|inside]
        what's the temperature [in here|inside]
        what temperature is it [in here|inside]
        tell me the temperature
        temperature
        how many degrees is it [in here|inside]
        check the temperature
        current temperature
        room temperature
        what does the thermostat say
        what is the room temperature
        what's the room temperature [in here]
        what is the current temperature
        tell me the room temperature
        current room temperature
        what about the room temperature
        room temperature (right now|now)
        the room temperature please
        give me the room temperature
        """),
    ),
    Group(
        "get_light",
        lines("""
        is the {room} (light|lamp) on
        are the {room} lights on
        is the light on in the {room}
        are the lights in the {room} on
        is the {room} (light|lamp) off
        are the {room} lights off
        did i leave the {room} (light|lights|lamp) on
        is the light in the {room} on
        check if the {room} (light|lamp) is on
        tell me if the {room} (light|lamp) is on
        are the lights on in the {room}
        did i turn off the {room} (light|lights|lamp)
        {room} light status
        is there [a] light on in the {room}
        is the light still on in the {room}
        is the {room} (light|lamp) still on
        """),
        weight=2,
    ),
    Group(
        "get_light",
        lines("is the light on\nare the lights on\nis the lamp on\nis the light off\ncheck if the light is on"),
        weight=0.4,
    ),
    Group(
        "get_light",
        lines(
            "are all [the] lights (on|off)\nare any lights on\nis any light on\nis every light off\n"
            "did i leave any lights on"
        ),
        {"target": "all"},
        weight=0.4,
    ),
    Group(
        "scene",
        lines("""
        activate [the] {scene} scene
        start [the] {scene} scene
        set the scene to {scene}
        switch to [the] {scene} scene
        turn on [the] {scene} scene
        {scene} scene
        put the house in {scene} mode
        set the house to {scene} mode
        i want [the] {scene} scene
        play [the] {scene} scene
        enable [the] {scene} scene
        run [the] {scene} scene
        scene {scene}
        change the scene to {scene}
        apply [the] {scene} scene
        load [the] {scene} scene
        """),
        weight=2,
    ),
    Group(
        "scene",
        lines("movie time\nit's movie time\nlet's watch a (movie|film)\ntime for a movie"),
        {"name": "movie"},
        0.3,
    ),
    Group(
        "scene",
        lines(
            "good night\ngoodnight\ni'm going to (bed|sleep)\ntime for bed\ni am going to bed\n"
            "it's time for bed\nbed time\ntime to sleep\ni want to sleep"
        ),
        {"name": "night"},
        0.3,
    ),
    Group(
        "scene",
        lines("good morning\ni'm awake\ni just woke up\ni am up\ni'm up\ni am awake\ni just got up\ntime to get up"),
        {"name": "morning"},
        0.3,
    ),
    Group(
        "scene", lines("i'm leaving\ni am leaving [the house]\nwe are going out\ni'm going out"), {"name": "away"}, 0.3
    ),
    Group(
        "scene",
        lines("i'm home\ni am home\nwe are home\ni am back home\ni'm back\nwe are back home\nhello i'm home"),
        {"name": "home"},
        0.3,
    ),
    Group("scene", lines("party time\nlet's party\nlet's have a party\nit's party time"), {"name": "party"}, 0.3),
    Group("scene", lines("dinner time\ntime for dinner\ndinner is ready\nit's dinner time"), {"name": "dinner"}, 0.3),
)

"""Phrasings for climate: temperature and mode."""

from __future__ import annotations

from edgephi.pocket.phrases.template import Group, lines

GROUPS = (
    Group(
        "set_temperature",
        lines("""
        set the temperature to {temp}
        set the thermostat to {temp}
        set [the] heating to {temp}
        turn the thermostat to {temp}
        make it {temp} [in here]
        change the temperature to {temp}
        temperature {temp}
        thermostat to {temp}
        turn the heat[ing] (up|down) to {temp}
        put the thermostat (at|on) {temp}
        i want it [to be] {temp} [in here]
        heat the house to {temp}
        set the air conditioning to {temp}
        set the ac to {temp}
        cool the house [down] to {temp}
        adjust the thermostat to {temp}
        turn the temperature (up|down) to {temp}
        raise the temperature to {temp}
        lower the temperature to {temp}
        bring the temperature (up|down) to {temp}
        keep it at {temp}
        warm the house [up] to {temp}
        heat to {temp}
        """),
        weight=1.5,
    ),
    Group(
        "set_temperature",
        lines("""
        set the {room} temperature to {temp}
        set the temperature in the {room} to {temp}
        set the {room} thermostat to {temp}
        make the {room} {temp}
        set the {room} to {unit_temp}
        make it {temp} in the {room}
        heat the {room} to {temp}
        cool the {room} [down] to {temp}
        change the {room} temperature to {temp}
        {room} temperature {temp}
        turn the {room} heating (up|down) to {temp}
        set the heating in the {room} to {temp}
        warm the {room} [up] to {temp}
        i want the {room} at {temp}
        put the {room} thermostat (at|on) {temp}
        {temp} in the {room}
        keep the {room} at {temp}
        raise the {room} temperature to {temp}
        lower the temperature in the {room} to {temp}
        heat the {room} up to {temp}
        heat up the {room} to {temp}
        cool the {room} down to {temp}
        make the {room} {unit_temp} please
        i'd like the {room} [to be] {temp}
        i'd like it to be {unit_temp} in the {room}
        turn the {room} (up|down) to {unit_temp}
        """),
        weight=1.5,
    ),
    Group(
        "change_temperature",
        lines("""
        make it [a bit|a little] warmer [in here]
        turn up the (heat|heating)
        turn the heating up
        raise the temperature
        increase the temperature
        i'm [too|so] cold
        it's [too|so] cold [in here]
        turn the temperature up [a bit|a little]
        turn up the thermostat
        i am freezing
        i feel [so] cold
        warmer
        turn up the temperature
        i am [too|so] cold
        it is freezing [in here]
        i'm (freezing|chilly)
        it's (chilly|freezing) [in here]
        we are cold
        it is [too|so] cold [in here]
        i want it warmer [in here]
        more heat
        i feel (chilly|freezing)
        i am (chilly|freezing)
        we are freezing
        i'm (freezing|chilly) in here
        it's (chilly|freezing)
        """),
        {"direction": "up", "unit": "degrees"},
    ),
    Group(
        "change_temperature",
        lines("""
        make it [a bit|a little] (cooler|colder) [in here]
        turn down the (heat|heating)
        turn the heating down
        lower the temperature
        decrease the temperature
        i'm [too|so] hot
        it's [too|so] (hot|warm) [in here]
        turn the temperature down [a bit|a little]
        turn down the thermostat
        reduce the temperature
        i feel [so] hot
        cooler
        turn down the temperature
        i am [too|so] hot
        it is boiling [in here]
        i'm (boiling|sweating)
        it's (boiling|stuffy) [in here]
        we are hot
        it is [too|so] hot [in here]
        i want it (cooler|colder) [in here]
        less heat
        i feel (boiling|sweaty)
        i am (boiling|sweating)
        we are boiling
        i'm (boiling|sweating) in here
        it's (boiling|stuffy)
        """),
        {"direction": "down", "unit": "degrees"},
    ),
    Group(
        "change_temperature",
        lines("""
        make the {room} [a bit|a little] warmer
        turn up the (heat|heating) in the {room}
        turn the {room} heating up
        raise the {room} temperature
        increase the temperature in the {room}
        it's [too|so] cold in the {room}
        the {room} is [too|so] cold
        make it warmer in the {room}
        turn up the {room} thermostat
        warm up the {room}
        raise the temperature in the {room}
        """),
        {"direction": "up", "unit": "degrees"},
    ),
    Group(
        "change_temperature",
        lines("""
        make the {room} [a bit|a little] (cooler|colder)
        turn down the (heat|heating) in the {room}
        turn the {room} heating down
        lower the {room} temperature
        decrease the temperature in the {room}
        it's [too|so] (hot|warm) in the {room}
        the {room} is [too|so] (hot|warm)
        make it cooler in the {room}
        turn down the {room} thermostat
        cool down the {room}
        lower the temperature in the {room}
        """),
        {"direction": "down", "unit": "degrees"},
    ),
    Group(
        "change_temperature",
        lines("""
        make it {delta} warmer
        turn up the heat[ing] [by] {delta}
        turn the heating up by {delta}
        raise the temperature [by] {delta}
        increase the temperature [by] {delta}
        make the {room} {delta} warmer
        turn the {room} heating up by {delta}
        raise the {room} temperature by {delta}
        {delta} warmer
        increase the temperature in the {room} by {delta}
        raise the temperature in the {room} by {delta}
        turn the thermostat up [by] {delta}
        warm the {room} up by {delta}
        """),
        {"direction": "up"},
        weight=1.5,
    ),
    Group(
        "change_temperature",
        lines("""
        make it {delta} (cooler|colder)
        turn down the heat[ing] [by] {delta}
        turn the heating down by {delta}
        lower the temperature [by] {delta}
        decrease the temperature [by] {delta}
        make the {room} {delta} (cooler|colder)
        turn the {room} heating down by {delta}
        lower the {room} temperature by {delta}
        {delta} (cooler|colder)
        decrease the temperature in the {room} by {delta}
        reduce the temperature [in the {room}] by {delta}
        turn the thermostat down [by] {delta}
        cool the {room} down by {delta}
        lower the temperature in the {room} by {delta}
        """),
        {"direction": "down"},
        weight=1.5,
    ),
    Group(
        "climate_mode",
        lines("""
        set the thermostat to {mode} [mode]
        set the air conditioning to {mode} [mode]
        switch the ac to {mode} [mode]
        put the thermostat (in|on) {mode} mode
        change the climate mode to {mode}
        switch to {mode} mode
        put the ac (in|on) {mode} [mode]
        set the mode to {mode}
        thermostat {mode} mode
        {mode} mode
        turn the air conditioner to {mode} [mode]
        set the ac to {mode} [mode]
        switch the thermostat to {mode} [mode]
        set the climate to {mode} [mode]
        use {mode} mode [on the ac]
        change the air conditioning to {mode} [mode]
        set the heating to {mode} [mode]
        """),
        weight=2,
    ),
    Group(
        "climate_mode",
        lines("""
        set the {room} thermostat to {mode} [mode]
        set the {room} air conditioning to {mode} [mode]
        switch the {room} ac to {mode} [mode]
        put the {room} thermostat (in|on) {mode} mode
        set the ac in the {room} to {mode} [mode]
        change the {room} climate mode to {mode}
        {room} thermostat {mode} mode
        use {mode} mode in the {room}
        switch the {room} thermostat to {mode}
        set the {room} ac to {mode} [mode]
        """),
        weight=1.5,
    ),
    Group(
        "climate_mode",
        lines("""
        turn off the (heating|thermostat|ac|air conditioning|air conditioner)
        turn the (heating|thermostat|ac|air conditioning) off
        switch off the (heating|ac|air conditioning)
        heating off
        ac off
        turn the {room} (heating|ac|air conditioning) off
        turn off the {room} (heating|ac|air conditioning)
        turn off the (heating|ac|air conditioning) in the {room}
        switch off the {room} (heating|ac)
        shut off the (heating|ac)
        """),
        {"mode": "off"},
    ),
    Group(
        "climate_mode",
        lines("""
        turn on the (heating|heater|heat)
        switch on the heating
        turn the heating on
        heating on
        turn on the heating in the {room}
        turn on the {room} (heating|heater)
        switch the {room} heating on
        """),
        {"mode": "heat"},
        weight=0.6,
    ),
    Group(
        "climate_mode",
        lines("""
        turn on the (ac|air conditioning|air conditioner|cooling)
        switch on the (ac|air conditioning)
        turn the (ac|air conditioning) on
        ac on
        turn on the (ac|air conditioning) in the {room}
        turn on the {room} (ac|air conditioning)
        switch the {room} ac on
        """),
        {"mode": "cool"},
        weight=0.6,
    ),
)

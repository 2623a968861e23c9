"""Phrasings for timers."""

from __future__ import annotations

from edgephi.pocket.phrases.template import Group, lines

GROUPS = (
    Group(
        "set_timer",
        lines("""
        set a timer for {duration}
        set a timer to {duration}
        start a timer for {duration}
        start a {duration} timer
        set a {duration} timer
        timer {duration}
        {duration} timer
        timer for {duration}
        give me a timer for {duration}
        create a timer for {duration}
        i need a timer for {duration}
        start a countdown of {duration}
        count down from {duration}
        set the timer for {duration}
        set the timer to {duration}
        make a timer of {duration}
        wake me [up] in {duration}
        let me know when {duration} (is|are) over
        start the timer with {duration}
        (alert|ping|tell) me (in|after) {duration}
        start counting down {duration}
        put {duration} on the timer
        new timer {duration}
        run a timer for {duration}
        add a timer for {duration}
        put a timer on for {duration}
        give me {duration} on the (timer|clock)
        set {duration} on the (timer|clock)
        start {duration} on the timer
        time me for {duration}
        time {duration}
        set (an egg|a kitchen|a cooking) timer for {duration}
        (an egg|a kitchen) timer for {duration}
        remind me in {duration}
        remind me again in {duration}
        remind me after {duration}
        set a reminder (in|for) {duration}
        remind us in {duration}
        (start|make) a {duration} timer please
        """),
        weight=2,
    ),
    Group(
        "cancel_timer",
        lines("""
        cancel the timer
        stop the timer
        delete the timer
        clear the timer
        end the timer
        turn off the timer
        cancel my timer
        remove the timer
        timer off
        i don't need the timer anymore
        stop the countdown
        cancel the countdown
        cancel that timer
        kill the timer
        forget the timer
        stop my timer
        switch the timer off
        abort the (timer|countdown)
        cancel timer
        timer stop
        i no longer need the timer
        we don't need the timer
        never mind the timer
        i don't want the timer anymore
        i don't need (that timer|the countdown)
        drop the timer
        get rid of the timer
        turn the timer off
        we no longer need the timer
        i don't need a timer now
        (i|we) do not need the timer
        don't need the timer
        """),
    ),
    Group(
        "get_timer",
        lines("""
        how much time is left [on the timer]
        how long is left on the timer
        how much longer on the timer
        what is the time left on the timer
        what's left on the timer
        check the timer
        timer status
        how many minutes are left [on the timer]
        when will the timer (end|finish|go off)
        when does the timer (end|finish|go off)
        show me the timer
        how is the timer doing
        is the timer done [yet]
        is the timer still running
        time left on the timer
        remaining time on the timer
        how much time remains [on the timer]
        tell me how much time is left
        when is the timer (done|over|up|finished)
        when will my timer be (done|ready|over)
        when does the countdown (end|finish|stop)
        how long does the timer have left
        how long do i have [left] on the timer
        how long until the timer (ends|goes off|is done)
        remaining time
        time remaining on the timer
        how much time does the timer have left
        what is the remaining time
        is there [any] time left on the timer
        when is my timer going to (end|go off)
        what is the time remaining [on the timer]
        what's the remaining time [on the timer]
        tell me the remaining time
        """),
    ),
)

"""
What the machine runs on: mains or a battery, and how full that is.

Owns the reading of the kernel's power supplies. A board fed by a plug that it knows nothing about has none.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path

from edgephi.profile.machine.kernelfile import list_folder, read_int, read_name

# Types of /sys/class/power_supply that store energy; "USB" and its kin, "Mains" and "Wireless" bring it in.
BATTERY_TYPES = frozenset({"Battery", "UPS"})
BATTERY_STATES = frozenset({"Charging", "Discharging", "Not charging", "Full"})


class PowerSource(enum.Enum):
    """Where the energy comes from."""

    MAINS = "mains"
    BATTERY = "battery"


@dataclass(frozen=True, slots=True)
class Battery:
    """
    A battery of the machine itself.

    Attributes:
        name: The kernel's name, such as ``BAT0``.
        percent: Charge from 0 to 100, or None.
        state: ``Charging``, ``Discharging``, ``Not charging``, ``Full``, or None.
    """

    name: str
    percent: int | None
    state: str | None


@dataclass(frozen=True, slots=True)
class PowerFacts:
    """
    What the machine runs on.

    Attributes:
        source: None where the kernel does not tell, as on most boards.
        batteries: Those of the machine; those of a mouse or a headset are left out.
    """

    source: PowerSource | None = None
    batteries: tuple[Battery, ...] = ()


def read_power(root: Path) -> PowerFacts:
    """Read the kernel's power supplies."""
    batteries: list[Battery] = []
    is_plugged = False
    for folder in list_folder(root / "sys/class/power_supply"):
        kind = read_name(folder / "type")
        if kind is None or read_name(folder / "scope") == "Device":
            continue
        if kind not in BATTERY_TYPES:
            is_plugged = is_plugged or read_int(folder / "online") in (1, 2)  # 2: a programmable USB supply
        elif read_int(folder / "present") != 0:
            percent, state = read_int(folder / "capacity"), read_name(folder / "status")
            batteries.append(
                Battery(
                    folder.name,
                    percent if percent is not None and 0 <= percent <= 100 else None,
                    state if state in BATTERY_STATES else None,
                )
            )
    return PowerFacts(_source(is_plugged, batteries), tuple(batteries))


def _source(is_plugged: bool, batteries: list[Battery]) -> PowerSource | None:
    states = {battery.state for battery in batteries}
    if is_plugged or states & {"Charging", "Not charging", "Full"}:
        return PowerSource.MAINS
    return PowerSource.BATTERY if "Discharging" in states else None

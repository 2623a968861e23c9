"""
Temperatures, and the ones at which the kernel acts.

Owns which readings are believed: sensors that are broken or not connected report the ends of their range.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edgephi.profile.machine.kernelfile import list_folder, read_int, read_name

# Chips for sale work from -40 to 125 degrees; drivers report -40, 127, 255 or absolute zero where nothing is connected.
MIN_SANE_CELSIUS = -39.9
MAX_SANE_CELSIUS = 126.0
# A trip that is switched off stands at 0, below it, or far above what silicon survives.
MAX_TRIP_CELSIUS = 200.0


@dataclass(frozen=True, slots=True)
class TripPoint:
    """
    A temperature at which the kernel acts.

    Attributes:
        kind: ``passive`` slows the cores down, ``active`` starts a fan, ``hot`` warns, ``critical`` switches off.
        celsius: The temperature.
    """

    kind: str
    celsius: float


@dataclass(frozen=True, slots=True)
class ThermalZone:
    """
    A temperature in degrees Celsius, the kernel's name for what it measures, and where it acts on it.

    Attributes:
        name: Such as ``cpu-thermal``; several zones may share one.
        celsius: The reading.
        trips: In the kernel's order; empty where there are none or they cannot be read.
    """

    name: str
    celsius: float
    trips: tuple[TripPoint, ...] = ()

    @property
    def throttle_celsius(self) -> float | None:
        """Where cores begin to be slowed down for this zone, or None."""
        return min((trip.celsius for trip in self.trips if trip.kind == "passive"), default=None)


def read_thermal_zones(root: Path) -> tuple[ThermalZone, ...]:
    """Return the temperatures the kernel reports, in its order; zones whose reading is absurd are left out."""
    found: list[ThermalZone] = []
    for folder in list_folder(root / "sys/class/thermal", "thermal_zone"):
        millidegrees = read_int(folder / "temp")
        if millidegrees is not None and MIN_SANE_CELSIUS <= millidegrees / 1000 <= MAX_SANE_CELSIUS:
            found.append(ThermalZone(read_name(folder / "type") or folder.name, millidegrees / 1000, _trips(folder)))
    return tuple(found)


def _trips(folder: Path) -> tuple[TripPoint, ...]:
    found: list[TripPoint] = []
    for path in list_folder(folder, "trip_point_"):
        if re.fullmatch(r"trip_point_[0-9]+_temp", path.name):
            millidegrees = read_int(path)
            kind = read_name(path.with_name(path.name.removesuffix("temp") + "type"))
            if kind is not None and millidegrees is not None and 0 < millidegrees / 1000 <= MAX_TRIP_CELSIUS:
                found.append(TripPoint(kind, millidegrees / 1000))
    return tuple(found)

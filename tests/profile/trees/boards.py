"""
Boards, phones and PCs, as their kernels describe them.

Constructed from the layouts their kernels document; some values of ``microvm`` were read on a real one.
"""

from __future__ import annotations

from dataclasses import replace

from tests.profile.trees.build import (
    A53,
    A55,
    A72,
    A76,
    A78AE,
    A510,
    A710,
    A715,
    GIB,
    MIB,
    V1_UNLIMITED,
    V80,
    V82,
    X3,
    Expected,
    Odd,
    Tree,
    arm,
    board,
    cooling,
    flags,
    process,
    ram,
    supply,
    v1,
    v2,
    x86,
    zone,
)

from edgephi.profile.machine.host import HostKind
from edgephi.profile.machine.memory_limits import BoundKind
from edgephi.profile.machine.power import PowerSource

MACHINE = BoundKind.MACHINE
PI5 = arm((4, A76, 2400)) | board("Raspberry Pi 5 Model B Rev 1.0", "raspberrypi,5-model-b", "brcm,bcm2712")
PI5_EXPECTED = Expected(
    budget=None,
    kind=MACHINE,
    allowed=4,
    clusters=((4, 2400, "Cortex-A76"),),
    board="Raspberry Pi 5 Model B Rev 1.0",
    level="armv8.2-dotprod",
)
RK3588 = arm((4, A55, 1800), (2, A76, 2400), (2, A76, 2352)) | board("Orange Pi 5", "rockchip,rk3588s")
RK3588_CLUSTERS = ((2, 2400, "Cortex-A76"), (2, 2352, "Cortex-A76"), (4, 1800, "Cortex-A55"))
SOC5 = "soc@107c000000"

BOARDS = (
    Tree(
        "pi4-2gb-raspios",
        arm((4, A72, 1500), features=V80)
        | board("Raspberry Pi 4 Model B Rev 1.2", "raspberrypi,4-model-b", "brcm,bcm2711")
        | ram(1840, 1500, swap_mib=100)
        | process("0-3")
        | flags("soc", "0")
        | zone(0, "cpu-thermal", 48199, passive=80000, critical=110000)
        | v2("/user.slice/user-1000.slice/session-3.scope", {"user.slice": {"memory.max": "max"}}),
        Expected(
            budget=(1500 - 128) * MIB,  # a sixteenth of 1840 MiB would be 115
            kind=MACHINE,
            allowed=4,
            clusters=((4, 1500, "Cortex-A72"),),
            zones=(("cpu-thermal", 48.199, 80),),
            host=HostKind.SYSTEMD,
            throttled=False,
            board="Raspberry Pi 4 Model B Rev 1.2",
        ),
    ),
    Tree(
        "pi5-8gb-throttled-by-heat",
        PI5 | ram(8064, 7000) | process("0-3") | flags(SOC5, "e0008") | zone(0, "cpu-thermal", 85100, critical=110000),
        replace(PI5_EXPECTED, budget=(7000 - 504) * MIB, zones=(("cpu-thermal", 85.1, None),), throttled=True),
    ),
    Tree(
        "pi5-4gb-weak-supply-earlier",
        PI5 | ram(4032, 3000) | process("0-3", own_mib=60) | flags(SOC5, "50000"),
        replace(PI5_EXPECTED, budget=(3000 - 252 + 60) * MIB, throttled=False),
    ),
    Tree(
        "pi5-2gb-zram",
        PI5
        | ram(2000, 1400, swap_mib=2000)
        | process("0-3")
        | {
            "proc/swaps": "Filename Type Size Used Priority\n/dev/zram0 partition 2048000 102400 100\n",
            "sys/block/zram0/mm_stat": "104857600 31457280 33554432 0 33554432 10 0 0 0\n",
        },
        replace(PI5_EXPECTED, budget=(1400 - 128) * MIB),
    ),
    Tree(
        "pi-zero-2w",
        arm((4, A53, 1000), features=V80) | board("Raspberry Pi Zero 2 W Rev 1.0") | ram(416, 250) | process("0-3"),
        Expected(
            budget=(250 - 128) * MIB,
            kind=MACHINE,
            allowed=4,
            clusters=((4, 1000, "Cortex-A53"),),
            board="Raspberry Pi Zero 2 W Rev 1.0",
        ),
    ),
    Tree(
        "rk3588-big-little",
        RK3588
        | ram(15872, 14000)
        | process("0-7")
        | zone(0, "soc-thermal", 46230, passive=75000, critical=115000)
        | zone(1, "bigcore0-thermal", 47153, passive=85000)
        | cooling(0, "cpufreq-cpu0", 0, 8)
        | cooling(1, "pwm-fan", 3, 4),
        Expected(
            budget=(14000 - 512) * MIB,
            kind=MACHINE,
            allowed=8,
            clusters=RK3588_CLUSTERS,
            zones=(("soc-thermal", 46.23, 75), ("bigcore0-thermal", 47.153, 85)),
            throttled=False,
            board="Orange Pi 5",
            level="armv8.2-dotprod",
        ),
    ),
    Tree(
        "rk3588-slowed-by-cooling",
        RK3588
        | ram(7936, 6000)
        | process("4-7")
        | zone(0, "soc-thermal", 88000, passive=85000)
        | cooling(0, "thermal-cpufreq-0", 0, 8)
        | cooling(1, "thermal-cpufreq-1", 2, 10),
        Expected(
            budget=(6000 - 496) * MIB,
            kind=MACHINE,
            allowed=4,
            clusters=RK3588_CLUSTERS,
            zones=(("soc-thermal", 88.0, 85),),
            throttled=True,
            board="Orange Pi 5",
            level="armv8.2-dotprod",
        ),
    ),
    Tree(
        "jetson-orin-nano-15w",
        arm((6, A78AE, 1728), governor="schedutil", limit_mhz=1510)
        | board("NVIDIA Jetson Orin Nano Developer Kit", "nvidia,p3768-0000+p3767-0005", "nvidia,tegra234")
        | ram(7616, 6500, swap_mib=3808)
        | process("0-5")
        | zone(0, "cpu-thermal", 52000, active=51000, passive=99000, critical=104500)
        | zone(1, "gpu-thermal", -256000),  # powered down
        Expected(
            budget=(6500 - 476) * MIB,
            kind=MACHINE,
            allowed=6,
            clusters=((6, 1728, "Cortex-A78AE"),),
            zones=(("cpu-thermal", 52.0, 99),),
            board="NVIDIA Jetson Orin Nano Developer Kit",
            level="armv8.2-dotprod",
        ),
    ),
    Tree(
        "jetson-with-two-cores-switched-off",
        arm((6, A78AE, 1510)) | {"sys/devices/system/cpu/online": "0-3\n"} | ram(7616, 6500) | process("0-5"),
        Expected(
            budget=(6500 - 476) * MIB,
            kind=MACHINE,
            allowed=4,
            clusters=((4, 1510, "Cortex-A78AE"),),
            level="armv8.2-dotprod",
        ),
    ),
    Tree(
        "pixel8-termux",
        arm((4, A510, 1704), (4, A715, 2367), (1, X3, 2914), features=f"{V82} i8mm bf16")
        | ram(7520, 2600, swap_mib=3000)
        | process("0-8")
        | v2("/uid_10234/pid_4321", {})
        | {
            "sys/fs/cgroup/uid_10234/pid_4321/memory.max": Odd.UNREADABLE,
            "sys/class/power_supply": Odd.UNREADABLE,
            "sys/class/thermal/thermal_zone0/temp": Odd.UNREADABLE,
            "data/data/com.termux/files/usr/etc/profile": "",
            "system/build.prop": Odd.UNREADABLE,
        },
        Expected(
            budget=(2600 - 470) * MIB,
            kind=MACHINE,
            allowed=9,
            clusters=((1, 2914, "Cortex-X3"), (4, 2367, "Cortex-A715"), (4, 1704, "Cortex-A510")),
            host=HostKind.ANDROID,
            level="armv8.6-i8mm",
        ),
    ),
    Tree(
        "snapdragon-8-gen-2-in-the-background",
        arm((3, A510, 2016), (2, A710, 2803), (2, A715, 2803), (1, X3, 3187), features=f"{V82} i8mm bf16")
        | ram(11264, 4000)
        | process("0-2")
        | supply("battery", "Battery", capacity=63, status="Discharging", present=1)
        | supply("usb", "USB", online=0)
        | {"data/data/com.termux/files/home/.bashrc": "", "sys/devices/soc0/machine": "KALAMA\n"},
        Expected(
            budget=(4000 - 512) * MIB,
            kind=MACHINE,
            allowed=3,
            clusters=(
                (1, 3187, "Cortex-X3"),
                (2, 2803, "Cortex-A710"),
                (2, 2803, "Cortex-A715"),
                (3, 2016, "Cortex-A510"),
            ),
            power=PowerSource.BATTERY,
            charge=(63,),
            host=HostKind.ANDROID,
            board="KALAMA",
            level="armv8.6-i8mm",
        ),
    ),
    Tree(
        "android-with-memcg-v1",
        arm((4, A55, 1800))
        | ram(3520, 1500)
        | process("0-3")
        | v1(
            "/apps/uid_10100/pid_900",
            {
                "/": {"memory.limit_in_bytes": V1_UNLIMITED},
                "apps": {"memory.limit_in_bytes": V1_UNLIMITED},
                "apps/uid_10100/pid_900": {"memory.limit_in_bytes": GIB, "memory.usage_in_bytes": 100 * MIB},
            },
            at="/dev/memcg",
        )
        | {"system/build.prop": ""},
        Expected(
            budget=GIB - 100 * MIB,
            kind=BoundKind.CGROUP,
            limit=GIB,
            allowed=4,
            clusters=((4, 1800, "Cortex-A55"),),
            host=HostKind.ANDROID,
            level="armv8.2-dotprod",
        ),
    ),
    Tree(
        "proot-debian",
        arm((4, A55, 1800), (4, A76, 2200))
        | ram(5632, 2000)
        | process("0-7", tracer=812)
        | {
            "proc/812/comm": "proot\n",
            "etc/os-release": 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
            "data/data/com.termux/files/usr/bin/proot": "",
        },
        Expected(
            budget=(2000 - 352) * MIB,
            kind=MACHINE,
            allowed=8,
            clusters=((4, 2200, "Cortex-A76"), (4, 1800, "Cortex-A55")),
            host=HostKind.PROOT,
            level="armv8.2-dotprod",
        ),
    ),
    Tree(
        "proot-without-a-visible-tracer",
        arm((8, A55, 1800))
        | ram(3840, 1200)
        | process("0-7")
        | {"proc/version": "Linux version 6.17.0-PRoot-Distro (proot@termux)\n", "system/build.prop": ""},
        Expected(
            budget=(1200 - 240) * MIB,
            kind=MACHINE,
            allowed=8,
            clusters=((8, 1800, "Cortex-A55"),),
            host=HostKind.PROOT,
            level="armv8.2-dotprod",
        ),
    ),
    Tree(
        "laptop-on-battery",
        x86(8, "Intel(R) Core(TM) i5-8250U CPU @ 1.60GHz", mhz=3400)
        | ram(7680, 4096)
        | process("0-7")
        | supply("AC", "Mains", online=0)
        | supply("BAT0", "Battery", present=1, capacity=41, status="Discharging")
        | supply("hid-00:1f-battery", "Battery", scope="Device", capacity=90, status="Discharging")
        | {f"sys/devices/system/cpu/cpu{n}/thermal_throttle/core_throttle_count": f"{n}\n" for n in range(8)},
        Expected(
            budget=(4096 - 480) * MIB,
            kind=MACHINE,
            allowed=8,
            clusters=((8, 3400, None),),
            power=PowerSource.BATTERY,
            charge=(41,),
            level="x86-64-v3",
        ),
        "x86_64",
    ),
    Tree(
        "laptop-plugged-in",
        x86(4, "Intel(R) Core(TM) i3", mhz=3000)
        | ram(3840, 2000)
        | process("0-3")
        | supply("ADP1", "Mains", online=1)
        | supply("BAT1", "Battery", capacity=100, status="Full")
        | supply("BAT2", "Battery", present=0, capacity=0),
        Expected(
            budget=(2000 - 240) * MIB,
            kind=MACHINE,
            allowed=4,
            clusters=((4, 3000, None),),
            power=PowerSource.MAINS,
            charge=(100,),
            level="x86-64-v3",
        ),
        "x86_64",
    ),
    Tree(
        "mini-pc-behind-a-ups",
        x86(4, "Intel(R) N100", mhz=3400)
        | ram(15872, 15000)
        | process("0-3")
        | supply("ups0", "UPS", capacity=88, status="Charging"),
        Expected(
            budget=(15000 - 512) * MIB,
            kind=MACHINE,
            allowed=4,
            clusters=((4, 3400, None),),
            power=PowerSource.MAINS,
            charge=(88,),
            level="x86-64-v3",
        ),
        "x86_64",
    ),
    Tree(
        "pc-without-product-name",
        x86(2, "Intel(R) Celeron(R)")
        | ram(1920, 1000)
        | process("0-1")
        | {"sys/class/dmi/id/product_name": "Default string\n"}
        | cooling(0, "Processor", 0, 10)
        | cooling(1, "Fan", 1, 1),
        Expected(
            budget=(1000 - 128) * MIB,
            kind=MACHINE,
            allowed=2,
            clusters=((2, None, None),),
            throttled=False,
            level="x86-64-v3",
        ),
        "x86_64",
    ),
    Tree(
        "wsl2",
        x86(16, "AMD Ryzen 7 5800X")
        | ram(15872, 14848, swap_mib=4096)
        | process("0-15")
        | v2("/init.scope", {"init.scope": {"memory.max": "max"}})
        | {"proc/sys/kernel/osrelease": "5.15.167.4-microsoft-standard-WSL2\n"},
        Expected(
            budget=(14848 - 512) * MIB,
            kind=MACHINE,
            allowed=16,
            clusters=((16, None, None),),
            host=HostKind.WSL,
            level="x86-64-v3",
        ),
        "x86_64",
    ),
    Tree(
        "microvm",
        x86(2, "AMD EPYC Processor")
        | ram(24105, 23549)
        | process("0-1", own_mib=7)
        | v1("/process_api/1e79", {"/": {"memory.limit_in_bytes": "9223372036854771712"}})
        | {".dockerenv": "", "proc/pressure/memory": "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"},
        Expected(
            budget=(23549 - 512 + 7) * MIB,
            kind=MACHINE,
            allowed=2,
            clusters=((2, None, None),),
            host=HostKind.DOCKER,
            level="x86-64-v3",
        ),
        "x86_64",
    ),
    Tree(
        "server-that-could-get-more-cores",
        arm((4, "0xd0c", 3000)) | ram(15872, 15000) | process("0-127"),
        Expected(
            budget=(15000 - 512) * MIB,
            kind=MACHINE,
            allowed=4,
            clusters=((4, 3000, "Neoverse-N1"),),
            level="armv8.2-dotprod",
        ),
    ),
    Tree(
        "riscv-board",
        board("StarFive VisionFive 2 v1.3B", "starfive,visionfive-2-v1.3b", "starfive,jh7110")
        | {"sys/devices/system/cpu/online": "0-3\n"}
        | ram(3840, 3000)
        | process("0-3"),
        Expected(
            budget=(3000 - 240) * MIB,
            kind=MACHINE,
            allowed=4,
            clusters=((4, None, None),),
            board="StarFive VisionFive 2 v1.3B",
            level=None,
        ),
        "riscv64",
    ),
)

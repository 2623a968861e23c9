"""
The words people use for the values of the schema.

Owns canonical value -> surface forms, most usual first. Knows no sentences.
"""

from __future__ import annotations

from collections.abc import Mapping

ROOM_WORDS: Mapping[str, tuple[str, ...]] = {
    "kitchen": ("kitchen",),
    "living_room": ("living room", "lounge", "sitting room", "livingroom"),
    "bedroom": ("bedroom", "bed room"),
    "bathroom": ("bathroom", "bath room", "restroom"),
    "hall": ("hall", "hallway", "corridor"),
    "office": ("office", "study", "home office"),
    "garage": ("garage",),
    "garden": ("garden", "yard", "backyard"),
    "basement": ("basement", "cellar"),
    "attic": ("attic", "loft"),
    "dining_room": ("dining room", "dining area"),
    "nursery": ("nursery", "kids room", "baby room", "children's room"),
    "guest_room": ("guest room", "spare room", "guest bedroom"),
    "laundry": ("laundry", "laundry room", "utility room"),
    "porch": ("porch", "front porch"),
    "balcony": ("balcony", "terrace"),
}
COLOR_WORDS: Mapping[str, tuple[str, ...]] = {
    "red": ("red",),
    "green": ("green",),
    "blue": ("blue",),
    "yellow": ("yellow",),
    "orange": ("orange",),
    "purple": ("purple", "violet"),
    "pink": ("pink",),
    "white": ("white",),
    "black": ("black",),
    "brown": ("brown",),
    "gray": ("gray", "grey"),
    "gold": ("gold", "golden"),
}
LIGHT_COLOR_WORDS: Mapping[str, tuple[str, ...]] = {
    **{name: COLOR_WORDS[name] for name in ("red", "green", "blue", "yellow", "orange", "purple", "pink", "white")},
    "warm_white": ("warm white", "soft white"),
    "cool_white": ("cool white", "cold white", "daylight"),
}
COVER_WORDS: Mapping[str, tuple[str, ...]] = {
    "blinds": ("blinds", "blind", "window blinds", "shades"),
    "curtains": ("curtains", "curtain", "drapes"),
    "shutters": ("shutters", "shutter", "roller shutters"),
    "awning": ("awning", "sunshade"),
}
DOOR_WORDS: Mapping[str, tuple[str, ...]] = {
    "front_door": ("front door", "main door", "entrance door"),
    "back_door": ("back door", "rear door"),
    "side_door": ("side door",),
    "garage_door": ("garage door", "garage"),
    "patio_door": ("patio door", "terrace door"),
    "gate": ("gate", "garden gate", "front gate"),
}
OBJECT_WORDS: Mapping[str, tuple[str, ...]] = {
    "cup": ("cup", "mug", "coffee cup"),
    "bottle": ("bottle", "water bottle"),
    "ball": ("ball",),
    "box": ("box", "carton"),
    "book": ("book",),
    "pen": ("pen", "pencil"),
    "phone": ("phone", "cell phone", "smartphone"),
    "keys": ("keys", "car keys"),
    "plate": ("plate", "dish"),
    "bowl": ("bowl",),
    "spoon": ("spoon",),
    "fork": ("fork",),
    "knife": ("knife",),
    "glass": ("glass", "drinking glass"),
    "can": ("can", "soda can", "tin"),
    "apple": ("apple",),
    "banana": ("banana",),
    "toy": ("toy", "teddy bear"),
    "shoe": ("shoe", "shoes", "sneaker"),
    "sock": ("sock", "socks"),
    "towel": ("towel",),
    "remote": ("remote", "remote control"),
    "block": ("block", "cube", "brick"),
    "bag": ("bag", "backpack"),
    "hammer": ("hammer",),
    "screwdriver": ("screwdriver",),
    "wrench": ("wrench", "spanner"),
    "newspaper": ("newspaper", "paper"),
    "pillow": ("pillow", "cushion"),
    "blanket": ("blanket",),
}
PLACE_WORDS: Mapping[str, tuple[str, ...]] = {
    "table": ("table", "coffee table"),
    "desk": ("desk",),
    "shelf": ("shelf", "bookshelf"),
    "floor": ("floor", "ground"),
    "counter": ("counter", "countertop", "worktop"),
    "sink": ("sink",),
    "bin": ("bin", "trash", "trash can", "garbage"),
    "basket": ("basket",),
    "drawer": ("drawer",),
    "sofa": ("sofa", "couch"),
    "chair": ("chair", "armchair"),
    "bed": ("bed",),
    "fridge": ("fridge", "refrigerator"),
    "tray": ("tray",),
    "cupboard": ("cupboard", "cabinet"),
    "window": ("window",),
    "door": ("door", "doorway"),
    "stairs": ("stairs", "staircase"),
    "bowl": ("bowl",),
    "box": ("box",),
    "bag": ("bag",),
    "plate": ("plate",),
}
SCENE_WORDS: Mapping[str, tuple[str, ...]] = {
    "movie": ("movie", "film", "cinema"),
    "night": ("night", "good night", "bedtime", "sleep"),
    "morning": ("morning", "good morning", "wake up"),
    "away": ("away", "leaving", "vacation"),
    "home": ("home", "arrival", "welcome home"),
    "party": ("party",),
    "reading": ("reading", "book"),
    "dinner": ("dinner", "supper"),
    "relax": ("relax", "relaxing", "chill"),
    "work": ("work", "focus", "working"),
}
MODE_WORDS: Mapping[str, tuple[str, ...]] = {
    "heat": ("heat", "heating", "heater"),
    "cool": ("cool", "cooling", "cold"),
    "auto": ("auto", "automatic"),
    "fan": ("fan", "fan only", "ventilation"),
    "dry": ("dry", "dehumidify"),
    "eco": ("eco", "economy", "energy saving"),
}
UNIT_WORDS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "meter": (("meter", "meters"), ("metre", "metres"), ("m", "m")),
    "centimeter": (("centimeter", "centimeters"), ("cm", "cm"), ("centimetre", "centimetres")),
    "millimeter": (("millimeter", "millimeters"), ("mm", "mm"), ("millimetre", "millimetres")),
    "foot": (("foot", "feet"), ("ft", "ft")),
    "inch": (("inch", "inches"),),
    "step": (("step", "steps"), ("pace", "paces")),
}

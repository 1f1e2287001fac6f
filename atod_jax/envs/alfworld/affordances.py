"""What can be done with each type of thing, for games that do not say so themselves.

PDDL problems list these facts per object; game files made from trajectories only give types. The
tables hold the knowledge of the ALFRED task constants (alfworld 0.4.2, MIT) in compact form.
"""

from atod_jax.envs.alfworld.game import Facts, Game

OPENABLE = frozenset({"Cabinet", "Drawer", "Fridge", "Microwave", "Safe"})

# Fixtures that are listed as items but cannot be carried.
FIXED = frozenset({"DeskLamp", "FloorLamp"})
TOGGLEABLE = FIXED
VESSELS = frozenset({"Bowl", "Box", "Cup", "Mug", "Pan", "Plate", "Pot"})
KNIVES = frozenset({"Knife", "ButterKnife"})

_VEGETABLES = {"Apple", "Lettuce", "Potato", "Tomato"}
_CUTLERY = {"ButterKnife", "Fork", "Knife", "Ladle", "Spatula", "Spoon"}

SLICEABLE = frozenset(_VEGETABLES | {"Bread", "Egg"})
HEATABLE = frozenset(SLICEABLE - {"Lettuce"} | {"Cup", "Mug", "Plate"})
COOLABLE = frozenset(SLICEABLE | {"Bowl", "Cup", "Mug", "Pan", "Plate", "Pot", "WineBottle"})
CLEANABLE = frozenset(
    _VEGETABLES
    | _CUTLERY
    | {"Bowl", "Cup", "Mug", "Pan", "Plate", "Pot"}
    | {"Cloth", "DishSponge", "Egg", "Kettle", "SoapBar"}
)

_SMALL = "CD Candle CellPhone CreditCard KeyChain Pen Pencil Watch"
_PAPER = "TissueBox ToiletPaper ToiletPaperRoll"
_BATH = f"{_PAPER} Cloth DishSponge HandTowel SoapBar SoapBottle SprayBottle"
_SEAT = """BasketBall Book Box CellPhone Cloth CreditCard KeyChain Laptop Newspaper Pillow
    RemoteControl"""
_DRESSER = f"""{_SMALL} AlarmClock BasketBall Book Bowl Box Cloth Cup Glassbottle Laptop Mug
    Newspaper Plate RemoteControl SprayBottle Statue TennisRacket {_PAPER} Vase WateringCan
    WineBottle"""
_TABLE = f"""{_DRESSER} {_BATH} Apple BaseballBat Bread ButterKnife Egg Fork Kettle Knife Ladle
    Lettuce Pan PaperTowel PepperShaker Pot Potato SaltShaker Spatula Spoon Tomato"""

_HOLDS = {
    "ArmChair": _SEAT,
    "BathtubBasin": "Cloth DishSponge HandTowel SoapBar",
    "Bed": "BaseballBat BasketBall Book CellPhone Laptop Newspaper Pillow TennisRacket",
    "Cabinet": f"""{_BATH} Book Bowl Box CD Candle Cup Glassbottle Kettle Ladle Mug Newspaper Pan
        PepperShaker Plate Plunger Pot SaltShaker Vase WateringCan WineBottle""",
    "Cart": f"{_BATH} Candle Mug PaperTowel Plunger Statue Vase",
    "CoffeeMachine": "Mug",
    "CoffeeTable": _TABLE,
    "CounterTop": _TABLE,
    "Desk": f"{_DRESSER} SoapBottle",
    "DiningTable": _TABLE,
    "Drawer": f"""{_SMALL} {_BATH} Book ButterKnife Fork Knife Ladle Newspaper PepperShaker
        RemoteControl SaltShaker Spatula Spoon WateringCan""",
    "Dresser": _DRESSER,
    "Fridge": """Apple Bowl Bread Cup Egg Glassbottle Lettuce Mug Pan Plate Pot Potato Tomato
        WineBottle""",
    "GarbageCan": f"""{_BATH} Apple Bread CD Egg Lettuce Newspaper PaperTowel Pen Pencil Potato
        Tomato WineBottle""",
    "HandTowelHolder": "HandTowel",
    "LaundryHamper": "Cloth",
    "Microwave": "Apple Bowl Bread Cup Egg Glassbottle Mug Plate Potato Tomato",
    "Ottoman": _SEAT,
    "Safe": "CD CellPhone CreditCard KeyChain Statue Vase Watch",
    "Shelf": f"""{_SMALL} {_BATH} AlarmClock Book Bowl Box Cup Glassbottle Kettle Mug Newspaper
        PaperTowel PepperShaker Plate Pot RemoteControl SaltShaker Statue Vase WateringCan
        WineBottle""",
    "SideTable": _TABLE,
    "SinkBasin": f"""{" ".join(_VEGETABLES | _CUTLERY)} Bowl Cloth Cup DishSponge Egg Glassbottle
        HandTowel Kettle Mug Pan Plate Pot SoapBar""",
    "Sofa": _SEAT,
    "StoveBurner": "Kettle Pan Pot",
    "TVStand": "TissueBox",
    "Toilet": f"{_BATH} Candle Newspaper PaperTowel",
    "ToiletPaperHanger": "ToiletPaper ToiletPaperRoll",
    "TowelHolder": "Towel",
}

CAN_CONTAIN = frozenset((holder, held) for holder, text in _HOLDS.items() for held in text.split())


def infer_facts(game: Game) -> Facts:
    """Returns the facts that a game's types imply; everything starts closed and untreated."""
    loc_of = {r.name: r.loc for r in game.receptacles}
    inside = {i.name: i.inside for i in game.items if i.inside is not None}
    return Facts(
        pickupable=frozenset(i.name for i in game.items if i.type not in FIXED),
        cleanable=_named(game, CLEANABLE),
        heatable=_named(game, HEATABLE),
        coolable=_named(game, COOLABLE),
        sliceable=_named(game, SLICEABLE),
        toggleable=_named(game, TOGGLEABLE),
        vessels=_named(game, VESSELS),
        can_contain=CAN_CONTAIN,
        inside=frozenset(inside.items()),
        at=frozenset((item, loc_of[receptacle]) for item, receptacle in inside.items()),
    )


def _named(game: Game, types: frozenset[str]) -> frozenset[str]:
    return frozenset(i.name for i in game.items if i.type in types)

"""What sounds in `stamps`, and which files of the packages show it and sound like it.

`T:animals/birds/crow.png` is a file of one package by its short name: the letter says where it lies
(`PLACES`), the rest is the path in there. Recordings that a tagger does not recognise are `WEAK`.
"""

from typing import NamedTuple


class Sources(NamedTuple):
    """Files of a class: cut-outs (alpha says what belongs to it), and recordings."""

    pictures: tuple[str, ...]
    sounds: tuple[str, ...]


# Letter -> package, place in it. A place inside an .rcc container follows a colon.
PLACES: dict[str, tuple[str, str]] = {
    "T": ("tuxpaint-stamps-default", "usr/share/tuxpaint/stamps/"),
    "I": (
        "gcompris-qt-data",
        "usr/share/gcompris-qt/rcc/instruments.rcc:gcompris/src/activities/instruments/resource/",
    ),
    "F": (
        "gcompris-qt-data",
        "usr/share/gcompris-qt/rcc/explore_farm_animals.rcc:"
        "gcompris/src/activities/explore_farm_animals/resource/animals/",
    ),
    "L": (
        "gcompris-qt-data",
        "usr/share/gcompris-qt/rcc/lang.rcc:gcompris/src/activities/lang/resource/words_sample/",
    ),
}

SOURCES: dict[str, Sources] = {
    "accordion": Sources(("I:accordion.svg",), ("I:accordion.ogg",)),
    "banjo": Sources(("I:banjo.svg",), ("I:banjo.ogg",)),
    "bongo": Sources(("I:bongo.svg",), ("I:bongo.ogg",)),
    "clarinet": Sources(("I:clarinet.svg",), ("I:clarinet.ogg",)),
    "flute_traversiere": Sources(("I:flute_traversiere.svg",), ("I:flute_traversiere.ogg",)),
    "harmonica": Sources(("I:harmonica.svg",), ("I:harmonica.ogg",)),
    "harp": Sources(("I:harp.svg",), ("I:harp.ogg",)),
    "horn": Sources(("I:horn.svg",), ("I:horn.ogg",)),
    "maracas": Sources(("I:maracas.svg",), ("I:maracas.ogg",)),
    "organ": Sources(("I:organ.svg",), ("I:organ.ogg",)),
    "piano": Sources(("I:piano.svg",), ("I:piano.ogg",)),
    "saxophone": Sources(("I:saxophone.svg",), ("I:saxophone.ogg",)),
    "snare_drum": Sources(("I:snare_drum.svg",), ("I:snare_drum.ogg",)),
    "tambourine": Sources(("I:tambourine.svg",), ("I:tambourine.ogg",)),
    "timpani": Sources(("I:timpani.svg",), ("I:timpani.ogg",)),
    "triangle": Sources(("I:triangle.svg",), ("I:triangle.ogg",)),
    "trombone": Sources(("I:trombone.svg",), ("I:trombone.ogg",)),
    "tuba": Sources(("I:tuba.svg",), ("I:tuba.ogg",)),
    "cello": Sources(
        ("I:cello.svg", "T:hobbies/music/string/cello.png"),
        ("I:cello.ogg", "T:hobbies/music/string/cello.ogg"),
    ),
    "violin": Sources(
        ("I:violin.svg", "T:hobbies/music/string/violin.png", "T:hobbies/music/string/violin2.svg"),
        ("I:violin.ogg", "T:hobbies/music/string/violin.ogg"),
    ),
    "cymbal": Sources(
        ("I:cymbal.svg", "T:hobbies/music/percussion/cymbal_crash.png"),
        ("I:cymbal.ogg", "T:hobbies/music/percussion/cymbal_crash.ogg"),
    ),
    "drum_kit": Sources(
        ("I:drum_kit.svg", "T:hobbies/music/percussion/drumkit.png"),
        ("T:hobbies/music/percussion/drumkit.ogg",),
    ),
    "guitar": Sources(
        (
            "I:guitar.svg",
            "T:hobbies/music/string/guitar_classical.png",
            "T:hobbies/music/string/guitar2.png",
        ),
        ("I:guitar.ogg",),
    ),
    "electric_guitar": Sources(
        ("I:electric_guitar.svg", "T:hobbies/music/string/guitar_electric.png"),
        ("I:electric_guitar.ogg",),
    ),
    "trumpet": Sources(("I:trumpet.svg", "T:hobbies/music/brass/trumpet.png"), ("I:trumpet.ogg",)),
    "bassoon": Sources(
        ("T:hobbies/music/wind/bassoon.png",), ("T:hobbies/music/wind/bassoon.ogg",)
    ),
    "cat": Sources(
        ("F:cat.svg", "L:cat.webp", "T:animals/mammals/cats/kitten.svg"), ("F:cat.ogg",)
    ),
    "chicken": Sources(
        ("F:chicken.svg", "L:chicken.webp", "T:animals/birds/hen.png"),
        ("F:chickens.ogg", "T:animals/birds/hen.ogg"),
    ),
    "cow": Sources(
        (
            "F:cow.svg",
            "L:cow.webp",
            "T:animals/mammals/bovines/cow.png",
            "T:animals/mammals/bovines/cow_white.png",
        ),
        ("F:cow.ogg", "T:animals/mammals/bovines/cow_white.ogg"),
    ),
    "dog": Sources(
        ("F:dog.svg", "L:dog.webp", "T:animals/mammals/dogs/dog.png"),
        ("F:dog.ogg", "T:animals/mammals/dogs/dog.ogg"),
    ),
    "duck": Sources(
        ("F:duck.svg", "L:duck.webp", "T:animals/birds/duck.png", "T:animals/birds/drake.png"),
        ("F:duck.ogg", "T:animals/birds/duck.ogg"),
    ),
    "horse": Sources(
        ("F:horse.svg", "L:horse.webp", "T:animals/mammals/equines/horse.png"),
        ("F:horse.ogg", "T:animals/mammals/equines/horse.ogg"),
    ),
    "owl": Sources(
        ("F:owl.svg", "L:owl.webp", "T:animals/birds/owl.png"),
        ("F:owl.ogg", "T:animals/birds/owl.ogg"),
    ),
    "pig": Sources(
        (
            "F:pig.svg",
            "L:pig.webp",
            "T:animals/mammals/pig.png",
            "T:animals/mammals/pig_golden.png",
            "T:animals/mammals/pig_golden2.png",
        ),
        ("F:pig.ogg",),
    ),
    "sheep": Sources(
        (
            "F:sheep.svg",
            "L:sheep.webp",
            "T:animals/mammals/bovines/sheep.png",
            "T:animals/mammals/bovines/sheep_lamb.png",
        ),
        (
            "F:sheep.ogg",
            "T:animals/mammals/bovines/sheep.ogg",
            "T:animals/mammals/bovines/sheep_lamb.ogg",
        ),
    ),
    "rooster": Sources(("T:animals/birds/rooster.png",), ("T:animals/birds/rooster.ogg",)),
    "turkey": Sources(
        ("T:animals/birds/turkey.png", "L:turkey.webp"), ("T:animals/birds/turkey.ogg",)
    ),
    "crow": Sources(("T:animals/birds/crow.png",), ("T:animals/birds/crow.ogg",)),
    "blackbird": Sources(("T:animals/birds/blackbird.png",), ("T:animals/birds/blackbird.ogg",)),
    "lark": Sources(("T:animals/birds/lark.png",), ("T:animals/birds/lark.ogg",)),
    "gander": Sources(("T:animals/birds/gander.png",), ("T:animals/birds/gander.ogg",)),
    "goat": Sources(
        ("T:animals/mammals/bovines/goat.png",), ("T:animals/mammals/bovines/goat.ogg",)
    ),
    "bison": Sources(
        ("T:animals/mammals/bovines/bison.png",), ("T:animals/mammals/bovines/bison.ogg",)
    ),
    "bear": Sources(
        ("T:animals/mammals/bears/bear.png", "L:bear.webp"), ("T:animals/mammals/bears/bear.ogg",)
    ),
    "gorilla": Sources(
        ("T:animals/mammals/apes/gorilla.png", "L:gorilla.webp"),
        ("T:animals/mammals/apes/gorilla.ogg",),
    ),
    "whale": Sources(
        ("T:animals/mammals/aquatic/whale.png", "L:whale.webp"),
        ("T:animals/mammals/aquatic/whale.ogg",),
    ),
    "tiger": Sources(("T:animals/mammals/cats/tiger.png",), ("T:animals/mammals/cats/tiger.ogg",)),
    "fox": Sources(
        ("T:animals/mammals/dogs/fox.png", "L:fox.webp"), ("T:animals/mammals/dogs/fox.ogg",)
    ),
    "frog": Sources(
        ("T:animals/amphibians/frog.png", "L:frog.webp"), ("T:animals/amphibians/frog.ogg",)
    ),
    "bee": Sources(("T:animals/insects/bee.png", "L:bee.webp"), ("T:animals/insects/bee.ogg",)),
    "firetruck": Sources(
        ("T:vehicles/emergency/firetruck.png",), ("T:vehicles/emergency/firetruck.ogg",)
    ),
    "vacuum_cleaner": Sources(
        ("T:household/vacuum_cleaner.svg",), ("T:household/vacuum_cleaner.ogg",)
    ),
    "toilet": Sources(("T:household/toilet.png",), ("T:household/toilet.ogg",)),
}

# By id. The last is what never sounds and has no name of its own: people, plants, food, furniture.
# It stands in `objects` and `instances` only, never in a label.
SILENT = "silent thing"
CLASSES = ("background", *SOURCES, SILENT)

# Real recordings that a pretrained tagger does not name.
WEAK_CLASSES = frozenset(
    ("bassoon", "gorilla", "bison", "fox", "frog", "bear", "triangle", "bongo")
)
WEAK_SOUNDS = frozenset(
    ("T:animals/mammals/equines/horse.ogg", "T:animals/birds/owl.ogg")
)  # of classes that have a better one
# In these ImageNet sees comic books and pencil boxes.
DRAWINGS = "L"

# Shown and heard by both packages. Of these tuxpaint's (T) files are for `cross` alone:
# often photographs of what was learned from drawings of gcompris. The other classes that both
# packages have learn from tuxpaint and are tested on gcompris.
CROSS_CLASSES = frozenset(
    ("cello", "violin", "cymbal", "guitar", "electric_guitar", "trumpet", "chicken", "cow", "duck")
)
CROSS_PACKAGE = "T"

# Photographs behind the objects, without anything that sounds.
BACKGROUNDS = (
    "gcompris-qt-data",
    "usr/share/gcompris-qt/rcc/explore_monuments.rcc:"
    "gcompris/src/activities/explore_monuments/resource/",
)
# Sounds of things that are not in the picture, less those that classes of ours make (_OWN_SOUNDS).
NOISES = (
    "gcompris-qt-data",
    "usr/share/gcompris-qt/rcc/memory-sound.rcc:gcompris/src/activities/memory-sound/resource/",
)
_OWN_SOUNDS = ("LRBark", "guitar", "LRFrogs")
# Whole photographs, to check a picture backbone by: no data set shows them.
EXAMPLES = {
    "farm_animals/dog.webp": (*PLACES["F"], "dog.webp"),
    "world_animals/panda.webp": (
        "gcompris-qt-data",
        "usr/share/gcompris-qt/rcc/explore_world_animals.rcc:"
        "gcompris/src/activities/explore_world_animals/resource/animals/",
        "panda.webp",
    ),
}
# Spoken names of stamps, in the order of languages; the last two are kept for validation and test.
SPEECH_LANGUAGES = ("", "_fr", "_es", "_ca", "_bg", "_ro", "_ru")
# Silent things: folders of tuxpaint's stamps that hold no drawing aids, letters or money.
_SILENT_FOLDERS = (
    "people/",
    "clothes/",
    "food/fruit/",
    "food/vegetables/",
    "household/",
    "plants/",
    "sports/",
)
_PEOPLE = "people/cartoon/"  # most people there are, are drawn
_UNREADABLE = ("people/cartoon/woman_dancing.svg",)  # of no size


def is_noise(name: str) -> bool:
    """Whether a file of `NOISES` is an off-screen sound that no class of ours makes."""
    return name.endswith(".ogg") and not name.startswith(_OWN_SOUNDS)


def is_silent_thing(name: str, names: frozenset[str] | set[str]) -> bool:
    """Whether a file of tuxpaint's stamps shows something that makes no sound of its own.

    `names`: all files there; what has a recording beside it is not silent.
    """
    stem, _, kind = name.rpartition(".")
    if kind == "svg":
        return name.startswith(_PEOPLE) and name not in _UNREADABLE
    return kind == "png" and name.startswith(_SILENT_FOLDERS) and f"{stem}.ogg" not in names


def speech_names(names: frozenset[str] | set[str]) -> list[tuple[str, str]]:
    """(file, language) of the spoken names that are used: all English ones, some of the others."""
    chosen = []
    for language in SPEECH_LANGUAGES:
        end = f"_desc{language}.ogg"
        found = sorted(name for name in names if name.startswith("animals/") and name.endswith(end))
        chosen += [(name, language.strip("_") or "en") for name in found[:: 5 if language else 1]]
    return chosen

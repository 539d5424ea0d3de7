"""The 71 classes of AVSBench-semantic: names, ids and palette colours.

An id is the class' value in the released `label2idx.json` minus one: background 0 ... woman 70. A
label picture of the release carries either the ids (`labels_semantic`) or the palette colours
(`labels_rgb`).
"""

import numpy as np

from avs_jax import errors
from avs_jax.media import drawing
from avs_jax.types import UInt8

_NAMES = """
    background accordion airplane axe baby bassoon bell bird boat boy bus car cat cello
    clarinet clipper clock dog donkey drum duck elephant emergency-car erhu flute frying-food
    girl goose guitar gun guzheng hair-dryer handpan harmonica harp helicopter hen horse
    keyboard leopard lion man marimba missile-rocket motorcycle mower parrot piano pig pipa
    saw saxophone sheep sitar sorna squirrel tabla tank tiger tractor train trombone truck
    trumpet tuba ukulele utv vacuum-cleaner violin wolf woman
"""
CLASS_NAMES = tuple(_NAMES.split())
NUM_CLASSES = len(CLASS_NAMES)  # 71

# In the `a_obj` column beside the class names.
_SPELLINGS = {"h orse": "horse"}


def class_id(name: str) -> int:
    """The id, 0..70, of a class name.

    Raises:
      UnknownNameError: for a name that is not one of the 71.
    """
    if name not in CLASS_NAMES:
        raise errors.unknown_name("AVSBench class", name, CLASS_NAMES)
    return CLASS_NAMES.index(name)


def sources(category: str) -> tuple[str, ...]:
    """The class names of a clip's `a_obj` column, e.g. "girl_guitar" -> ("girl", "guitar").

    Sounds off the screen and "background" are not sources, and words that are no class
    are left out.
    """
    names = (_SPELLINGS.get(name, name) for name in category.split("_"))
    return tuple(name for name in names if name in CLASS_NAMES[1:])


PALETTE = drawing.palette(NUM_CLASSES)  # u8[71 3], RGB
PALETTE.setflags(write=False)


def _index_by_code() -> np.ndarray:
    """Colour code -> id. 71 ids use three bits a channel, so 512 codes tell their colours apart."""
    table = np.zeros(512, np.uint8)
    table[_code(PALETTE)] = np.arange(NUM_CLASSES)
    return table


def _code(colours: np.ndarray) -> np.ndarray:
    red, green, blue = (colours[..., channel].astype(np.uint16) >> 5 for channel in range(3))
    return red << 6 | green << 3 | blue


_INDEX = _index_by_code()


def encode_palette(label: UInt8[np.ndarray, "*n"]) -> UInt8[np.ndarray, "*n 3"]:
    """Class ids 0..70 -> RGB colours of the released `labels_rgb`."""
    return PALETTE[label]


def decode_palette(
    picture: UInt8[np.ndarray, "h w 3"],
) -> tuple[UInt8[np.ndarray, "h w"], UInt8[np.ndarray, "n 3"]]:
    """RGB colours -> class ids, by exact match as the published loaders do.

    Returns:
      The ids, 0 where the colour is not in the palette; and those colours, one row for each pixel.
    """
    label = _INDEX[_code(picture)]
    unknown = (PALETTE[label] != picture).any(axis=-1)
    label[unknown] = 0
    return label, picture[unknown]

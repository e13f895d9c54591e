from __future__ import annotations

from collections import Counter

import pytest

from calibdask.errors import ConfigError, CorruptedInput, MissingInput
from calibdask.io.emva import EmvaImage, find_emva_descriptor, read_emva_descriptor

GOOD = """\
# a comment
v 3.0
n 12 640 480
b 40000.0 120.0
i images\\b 1.png
i images\\b2.png
d 40000.0
i images\\d1.png
i images\\d2.png
i images\\d3.png
"""


def descriptor(folder, text=GOOD):
    (folder / "images").mkdir()
    for name in ("b 1", "b2", "d1", "d2", "d3"):
        (folder / "images" / f"{name}.png").touch()
    path = folder / "EMVA1288_Data.txt"
    path.write_text(text)
    return path


def test_reference_set(shared_sensor):
    folder = shared_sensor / "emva1288_001_ccd_12bit"
    path = find_emva_descriptor(folder)
    read = read_emva_descriptor(path)
    assert (read.bit_depth, read.shape) == (12, (480, 640))
    assert Counter(image.kind for image in read.images.values()) == {
        "emva_bright": 100, "emva_dark": 100, "emva_bright_spatial": 50, "emva_dark_spatial": 50,
    }  # fmt: skip
    assert read.images[folder / "images" / "b_001_snap_002.png"] == EmvaImage(
        "emva_bright", pytest.approx(0.32e-3), 961.0
    )
    assert all(image.is_file() for image in read.images)


def test_what_it_says(tmp_path):
    read = read_emva_descriptor(descriptor(tmp_path))
    assert read.images == {
        tmp_path / "images" / "b 1.png": EmvaImage("emva_bright", 4e-5, 120.0),
        tmp_path / "images" / "b2.png": EmvaImage("emva_bright", 4e-5, 120.0),
        **{
            tmp_path / "images" / f"d{i}.png": EmvaImage("emva_dark_spatial", 4e-5, 0.0)
            for i in (1, 2, 3)
        },
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("n 12 640 480", "n 12"), "line 3: 'n 12' is none of"),
        (GOOD.replace("b 40000.0 120.0", "b a 120.0"), "line 4"),
        (GOOD.replace("d 40000.0", "q 1"), "line 7: 'q 1'"),
        ("n 12 640 480\ni a.png\n", "line 2"),
        (GOOD.replace("n 12 640 480\n", ""), "has no line 'n bits width height'"),
        (GOOD + "i images\\b2.png\n", "twice"),
        (GOOD + "b 5 1\n", "line 11: the measurement has 0 images"),
        (GOOD.partition("i images\\d2")[0], "line 7: the measurement has 1 images"),
        (GOOD.partition("b 40000")[0], "names no measurement"),
        (GOOD + "i images\\d4.png\n", "1 of the 6 images that it names are not there.*d4.png"),
    ],
)
def test_what_makes_no_sense(tmp_path, text, message):
    with pytest.raises(CorruptedInput, match=message):
        read_emva_descriptor(descriptor(tmp_path, text))


def test_none_and_several(tmp_path):
    assert find_emva_descriptor(tmp_path) is None
    with pytest.raises(MissingInput):
        read_emva_descriptor(tmp_path / "gone.txt")
    descriptor(tmp_path)
    (tmp_path / "EMVA1288_old.txt").touch()
    with pytest.raises(ConfigError, match="has 2 descriptors"):
        find_emva_descriptor(tmp_path)

"""Pictures in folders and parquet files become rows; what is damaged or hostile stays out."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from forward_inf_mlflow.data.picture_rows import lost_notes, read_data
from forward_inf_mlflow.data.pictures import PictureForm, form_of, parsed, picture_form
from forward_inf_mlflow.data.reading import Columns
from forward_inf_mlflow.data.rewriting import rewrite
from forward_inf_mlflow.data.rows import Rows
from forward_inf_mlflow.errors import DataError
from forward_inf_mlflow.models.example import example_range

GREY = PictureForm((1, 4, 6), ranges=((0, 1),))
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (24, 4, 6), dtype=np.uint8)


def png(pixels: np.ndarray, mode: str | None = None) -> bytes:
    content = io.BytesIO()
    picture = Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(content, "PNG")
    return content.getvalue()


def folder(path: Path, count: int = 24) -> Path:
    """Write pictures of two classes, ``ant/00.png`` and so on."""
    for i, pixels in enumerate(PIXELS[:count]):
        file = path / ("ant", "bee")[i % 2] / f"{i:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(pixels))
    return path


def read(path: Path, form: PictureForm = GREY, **columns: object) -> Rows:
    wanted = Columns(pictures=form, **columns)  # type: ignore[arg-type]
    return read_data(path, uri=path.name, columns=wanted)


def test_a_folder_is_rows_by_their_paths_and_labels_by_their_folders(tmp_path: Path) -> None:
    folder(tmp_path / "train")
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / ".cache" / "x.png").write_bytes(b"no data")
    (tmp_path / "train" / "ant" / "._00.png").write_bytes(b"what a Mac leaves")
    (tmp_path / "train" / "notes.txt").write_text("no picture")
    rows = read(tmp_path / "train")
    order = [*range(0, 24, 2), *range(1, 24, 2)]
    assert rows.ids.tolist() == [f"{('ant', 'bee')[i % 2]}/{i:02}.png" for i in order]
    assert rows.labels.tolist() == ["ant"] * 12 + ["bee"] * 12
    assert isinstance(rows.features, np.ndarray)
    assert rows.features.dtype == np.float32
    # To the last bit what a training script makes of them.
    assert np.array_equal(rows.features, PIXELS[order][:, None].astype(np.float32) / 255)
    assert rows.decoded is not None
    assert rows.decoded.folders is not None
    assert rows.decoded.folders.tolist() == ["ant", "bee"]
    assert "pixels from 0 to 1" in rows.decoded.told
    assert lost_notes(rows, "training") == []


def test_of_drawn_pictures_the_others_are_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read(folder(tmp_path / "train"))
    decoded: list[object] = []
    opened = Image.open
    monkeypatch.setattr(Image, "open", lambda f, **how: decoded.append(f) or opened(f, **how))
    some = read(tmp_path / "train", PictureForm(GREY.shape, ranges=GREY.ranges, most=5, seed=3))
    assert len(some) == len(decoded) == 5
    assert some.sha256 == whole.sha256
    assert some.decoded is not None
    assert some.decoded.whole == 24
    places = some.decoded.positions
    assert some.ids.tolist() == whole.ids[places].tolist()
    assert np.array_equal(some.digests, whole.digests[places])
    (tmp_path / "train" / "ant" / "02.png").write_bytes(png(PIXELS[1]))
    assert read(tmp_path / "train").sha256 != whole.sha256


def test_pictures_that_do_not_decode_are_named_up_to_a_limit(tmp_path: Path) -> None:
    train = folder(tmp_path / "train")
    file = train / "bee" / "01.png"
    file.write_bytes(file.read_bytes()[:60])
    rows = read(train)
    assert len(rows) == 23
    assert "bee/01.png" not in rows.ids
    assert lost_notes(rows, "training") == [
        "1 training picture(s) do not decode and were left out: 'bee/01.png'"
    ]
    (train / "ant" / "00.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\n")
    with pytest.raises(DataError, match="more than 5% of its 24 pictures cannot be read") as error:
        read(train)
    assert "'ant/00.png', 'bee/01.png' do not decode" in str(error.value)


def test_a_picture_of_too_many_pixels_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = folder(tmp_path / "train")
    (train / "ant" / "bomb.png").write_bytes(png(np.zeros((40, 60), np.uint8)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    rows = read(train)
    assert rows.decoded is not None
    assert rows.decoded.lost == {"do not decode": ("ant/bomb.png",)}


def test_nothing_outside_of_the_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(PIXELS[0]))
    train = folder(tmp_path / "train")
    (train / "ant" / "out.png").symlink_to(tmp_path / "secret.png")
    (train / "bee" / "same.png").symlink_to(train / "bee" / "01.png")
    rows = read(train)
    assert "bee/same.png" in rows.ids
    assert lost_notes(rows, "query") == [
        "1 query picture(s) lead out of the folder and were left out: 'ant/out.png'"
    ]
    (train / "cat").symlink_to(tmp_path)
    with pytest.raises(DataError, match="the folder 'cat' in it is a link"):
        read(train)


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (PictureForm((1, 5, 6), ranges=((0, 1),)), "'ant/00.png' has 6 x 4 pixels, and the model "),
        (PictureForm(None, ranges=((0, 1),)), "does not say which shape"),
        (PictureForm((7, 5, 6), ranges=((0, 1),)), "rows of shape .7, 5, 6., which no picture"),
        (PictureForm((1, 4, 6)), "without an input example.*--pixels 0:1"),
        (PictureForm((25,), ranges=((0, 1),)), "6 x 4 pixels, and the model takes rows of 25"),
        (PictureForm((24,), ranges=((0, 1),), resize=True), "leave --resize out"),
        (PictureForm((1, 4, 6), ranges=((0, 1),) * 3), "--pixels has 3 ranges"),
        (PictureForm((1, 4, 6), "int64", ranges=((0, 1),)), "takes whole numbers"),
    ],
)
def test_what_is_not_known_or_does_not_fit_is_one_sentence(
    form: PictureForm, said: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=said) as error:
        read(folder(tmp_path / "train", 4), form)
    assert "\n" not in str(error.value)


def test_pictures_take_the_models_shape_and_range(tmp_path: Path) -> None:
    for kind in ("a", "b"):
        (tmp_path / kind).mkdir()
        for i in range(2):
            colours = RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8)
            (tmp_path / kind / f"{i}.png").write_bytes(png(colours))
            (tmp_path / kind / f"{i}.npy").write_bytes(colours.tobytes())
    colours = np.stack(
        [
            np.frombuffer((tmp_path / kind / f"{i}.npy").read_bytes(), np.uint8).reshape(4, 6, 3)
            for kind in ("a", "b")
            for i in range(2)
        ]
    )
    first = read(tmp_path, PictureForm((3, None, None), ranges=((-1, 1), (0, 2), (0, 255))))
    expected = np.moveaxis(colours, -1, 1) * np.array([2, 2, 255])[:, None, None] / 255
    expected -= np.array([1, 0, 0])[:, None, None]
    assert np.allclose(first.features, expected, atol=1e-6)
    last = read(tmp_path, PictureForm((4, 6, 3), "uint8", ranges=((0, 255),)))
    assert np.array_equal(last.features, colours)
    grey = read(tmp_path, GREY)
    assert lost_notes(grey, "training") == [
        "4 training picture(s) lost their colours or transparency, which the model does not take"
    ]
    small = read(tmp_path, PictureForm((3, 2, 3), ranges=((0, 1),), resize=True))
    assert small.features.shape == (4, 3, 2, 3)
    assert small.decoded is not None
    assert "resized" in small.decoded.told
    deep = np.full((4, 6), 300, np.uint16)
    Image.fromarray(deep).save(tmp_path / "a" / "deep.png")
    with pytest.raises(DataError, match=r"deep.png' has pixels of more than 8 bits"):
        read(tmp_path, GREY)


@pytest.mark.parametrize("wrapped", [True, False], ids=["struct", "bytes"])
def test_a_parquet_file_may_hold_pictures(wrapped: bool, tmp_path: Path) -> None:
    contents: list[bytes | None] = [png(pixels) for pixels in PIXELS]
    contents[7] = None
    held = [{"bytes": c, "path": "/etc/passwd"} if wrapped else c for c in contents]
    frame = pd.DataFrame({"image": held, "label": np.arange(24) % 2, "town": ["x", "y"] * 12})
    (tmp_path / "parts").mkdir()
    frame[:10].to_parquet(tmp_path / "parts" / "0.parquet")
    frame[10:].to_parquet(tmp_path / "parts" / "1.parquet")
    rows = read(tmp_path / "parts", source="town")
    others = [i for i in range(24) if i != 7]
    assert rows.ids.tolist() == [str(i) for i in others]
    assert rows.labels.tolist() == [i % 2 for i in others]
    assert rows.sources is not None
    assert rows.sources.tolist() == [("x", "y")[i % 2] for i in others]
    assert isinstance(rows.features, np.ndarray)
    assert np.array_equal(rows.features[:, 0] * 255, PIXELS[others])
    assert "hold no bytes and were left out: '7'" in lost_notes(rows, "training")[0]
    whole = read(tmp_path / "parts", source="town", features=("image",))
    assert whole.sha256 == rows.sha256
    frame.assign(other=held).to_parquet(tmp_path / "two.parquet")
    with pytest.raises(DataError, match="one column of pictures; name it alone with --features"):
        read(tmp_path / "two.parquet")


def test_a_folder_without_classes_or_names_is_refused(tmp_path: Path) -> None:
    train = folder(tmp_path / "train")
    with pytest.raises(DataError, match="has no column 'nr'"):
        read(train, id="nr")
    assert len(read(train, id="nr", lenient=True)) == 24
    (train / "top.png").write_bytes(png(PIXELS[0]))
    with pytest.raises(DataError, match=r"'top.png' lies in no folder.*as in cat/001.png"):
        read(train)
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"no \.parquet file and no picture"):
        read(tmp_path / "none")


def test_rows_that_memory_cannot_hold_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forward_inf_mlflow.data.pictures.total_memory", lambda: 24 * 24 * 8 - 1)
    with pytest.raises(DataError, match="--max-rows"):
        read(folder(tmp_path / "train"))


def test_a_picture_is_not_left_out_for_want_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Image.open

    def full(file: Path, **how: object) -> Image.Image:
        if file.name == "01.png":
            raise MemoryError
        return opened(file, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(Image, "open", full)
    with pytest.raises(DataError, match=r"out of memory at 'bee/01.png'.*--max-rows"):
        read(folder(tmp_path / "train"))


@pytest.mark.parametrize(
    ("example", "ranges"),
    [
        ((0, 1), ((0, 1),)),
        ((0.02, 0.9), ((0, 1),)),
        ((0, 255), ((0, 255),)),
        ((0, 16), None),
        ((-2.1, 2.6), None),
        ((0, 0), None),
        (None, None),
    ],
)
def test_the_input_example_says_what_pixels_become(
    example: tuple[float, float] | None, ranges: object
) -> None:
    form = picture_form((1, 4, 6), np.dtype(np.float32), example)
    assert form.ranges == ranges
    said = picture_form((1, 4, 6), np.dtype(np.float32), example, pixels="-1:1")
    assert said.ranges == ((-1, 1),)
    assert said.why == "as --pixels says"
    assert form_of(said.as_dict()) == said
    assert form_of({"shape": "no", "ranges": 3}) is None


@pytest.mark.parametrize("text", ["", "1", "0:1:2", "a:b", "0:0", "0:inf", "0:1,"])
def test_a_range_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="write what 0 and 255 become"):
        picture_form(None, np.dtype(np.float32), None, pixels=text)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("[[[0.0, 0.5], [1.0, 0.25]]]", (0, 1)),
        ('{"inputs": [[3, -4]]}', (-4, 3)),
        ('{"columns": ["a", "b"], "data": [[1, 2]]}', (1, 2)),
        ('[["text"]]', None),
        ("[[1], [2, 3]]", None),
        ("[[NaN]]", None),
        ("[" * 100_000, None),
    ],
)
def test_an_input_example_is_a_hint(content: str, found: object, tmp_path: Path) -> None:
    assert example_range(tmp_path) is None
    (tmp_path / "input_example.json").write_text(content)
    assert example_range(tmp_path) == found


def test_a_cleaned_folder_has_pictures_moved_and_left_out(tmp_path: Path) -> None:
    train = folder(tmp_path / "train")
    (train / "bee" / "00.png").write_bytes(png(PIXELS[3]))
    (train / "notes.txt").write_text("kept")
    drop = np.zeros(25, dtype=bool)
    drop[1] = True  # ant/02.png
    rewrite(train, tmp_path / "new", columns=Columns(), labels={0: "bee", 24: "ant"}, drop=drop)
    rows = read(tmp_path / "new")
    ids = set(rows.ids.tolist())
    assert len(ids) == 24
    assert not ids & {"ant/00.png", "ant/02.png", "bee/23.png"}
    assert {"bee/00-ant.png", "bee/00.png", "ant/23.png"} <= ids
    assert (tmp_path / "new" / "bee" / "00-ant.png").read_bytes() == png(PIXELS[0])
    assert (tmp_path / "new" / "notes.txt").read_text() == "kept"
    with pytest.raises(DataError, match="is no folder with pictures"):
        rewrite(train, tmp_path / "bad", columns=Columns(), labels={0: "../out"}, drop=drop)
    assert not (tmp_path / "out").exists()


def test_ranges_may_be_called_as_attribute_calls_them() -> None:
    assert parsed("signed") == parsed("-1:1") == ((-1.0, 1.0),)
    assert parsed("unit") == parsed("0:1") == ((0.0, 1.0),)

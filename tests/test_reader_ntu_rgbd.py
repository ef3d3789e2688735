"""NTU's text files: what real ones contain is read, by both passes alike; what is damaged is named by file and line."""

import os
import pickle
import resource
from pathlib import Path

import numpy as np
import pytest

from datamodules.errors import InputError
from datamodules.readers import MalformedFile
from datamodules.readers.ntu_rgbd import NTUReader, parse_carefully, parse_regular

GOLDEN = Path(__file__).parent / "golden" / "ntu" / "raw"
NAME = "S001C002P003R002A013.skeleton"
ID = 72057594037930000


def joint_line(rng: np.random.Generator) -> str:
    numbers = rng.normal(size=11) * 10.0 ** rng.integers(-6, 3, size=11)
    return " ".join(f"{number:.7g}" for number in numbers) + " 2"


def document(bodies: list[list[int]], seed: int = 0) -> list[str]:
    """Lines of a good file; `bodies` holds the tracking ids in each frame."""
    rng = np.random.default_rng(seed)
    lines = [str(len(bodies))]
    for ids in bodies:
        lines.append(str(len(ids)))
        for tracking_id in ids:
            lines += [f"{tracking_id} 0 1 1 1 1 0 0.0276 -0.0575 2", "25", *(joint_line(rng) for _ in range(25))]
    return lines


def written(folder: Path, lines: list[str] | bytes, name: str = NAME, newline: str = "\n") -> Path:
    path = folder / name
    path.write_bytes(lines if isinstance(lines, bytes) else (newline.join(lines) + newline).encode())
    return path


def plainly(lines: list[str]) -> list[list[tuple[int, list[list[float]]]]]:
    """A reader of good files of its own, token by token."""
    rows = iter(lines)
    frames = []
    for _ in range(int(next(rows))):
        frame = []
        for _ in range(int(next(rows))):
            tracking_id = int(next(rows).split()[0])
            frame.append((tracking_id, [[float(x) for x in next(rows).split()[:3]] for _ in range(int(next(rows)))]))
        frames.append(frame)
    return frames


def refused(path: Path, reader: NTUReader | None = None) -> MalformedFile:
    with pytest.raises(MalformedFile) as caught:
        (reader or NTUReader()).read(path)
    assert caught.value.path == path
    assert str(caught.value).startswith(path.name) and "\n" not in str(caught.value)
    return caught.value


def test_one_recording(tmp_path):
    lines = document([[ID], [], [ID, ID + 7], [ID + 7]])
    sample = NTUReader().read(written(tmp_path, lines))
    assert sample.joints.shape == (4, 2, 25, 3) and sample.joints.dtype == np.float32
    assert sample.body_ids.dtype == np.int64
    assert sample.body_ids.tolist() == [[ID, -1], [-1, -1], [ID, ID + 7], [ID + 7, -1]]
    for number, frame in enumerate(plainly(lines)):
        for slot, (_, points) in enumerate(frame):
            assert np.array_equal(sample.joints[number, slot], np.float32(points))
    assert not sample.joints[sample.body_ids == -1].any()
    found = (sample.name, sample.setup, sample.camera, sample.performer, sample.replication, sample.label)
    assert found == (NAME.removesuffix(".skeleton"), 1, 2, 3, 2, 12)


@pytest.mark.parametrize("seed", range(25))
def test_both_passes_read_random_good_files_alike(tmp_path, seed):
    rng = np.random.default_rng(seed)
    ids = [rng.integers(0, 2**62, size=rng.integers(0, 4)).tolist() for _ in range(rng.integers(1, 9))]
    lines = document([*ids, [ID]], seed)
    newline = "\r\n" if seed % 2 else "\n"
    data = written(tmp_path, lines, newline=newline).read_bytes() + newline.encode() * int(rng.integers(0, 3))
    fast, careful = parse_regular(data), parse_carefully(Path(NAME), data)
    assert fast.bodies == careful.bodies and fast.ids == careful.ids
    expected = np.array([points for frame in plainly(lines) for _, points in frame])
    # Bitwise: both round as float does.
    assert fast.coordinates.tobytes() == careful.coordinates.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "number",
    ["0", "-0", "5", "-3.", ".5", "+.5", "-.25", "+1.25", "1e-05", "-9.313226e-10", "12.5", "0.1234567890",
     "0.12345678901", "-0.0", "3.785547", "0.30000000000000004", "2.5E+1", "007.5"],
)  # fmt: skip
def test_every_spelling_of_a_number(tmp_path, number):
    lines = document([[ID]])
    lines[9] = " ".join(["1.5", number, number, *lines[9].split()[3:]])
    for parse in (parse_regular, lambda data: parse_carefully(Path(NAME), data)):
        coordinates = parse(written(tmp_path, lines).read_bytes()).coordinates
        assert coordinates[0, 5].tobytes() == np.array([1.5, float(number), float(number)]).tobytes()


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.skeleton")), ids=lambda path: path.stem)
def test_golden_files_take_the_fast_pass(path):
    data = path.read_bytes()
    fast, careful = parse_regular(data), parse_carefully(path, data)
    assert fast.ids == careful.ids and fast.bodies == careful.bodies
    assert fast.coordinates.tobytes() == careful.coordinates.tobytes()
    assert NTUReader().read(path).joints.shape[0] == 14


def test_real_files():
    if "SKELFED_REALDATA" not in os.environ:
        pytest.skip("SKELFED_REALDATA is not set")
    reader = NTUReader()
    paths = reader.files(Path(os.environ["SKELFED_REALDATA"], "ntu-rgbd"))
    assert len(paths) == 5
    for path in paths:
        data = path.read_bytes()
        frames = plainly(data.decode().splitlines())
        assert parse_regular(data).bodies == [len(frame) for frame in frames]
        sample = reader.read(path)
        assert sample.joints.shape[0] == len(frames) and np.abs(sample.joints).max() < 10
        for number, frame in enumerate(frames):
            assert sample.body_ids[number].tolist() == [tracking_id for tracking_id, _ in frame]
            assert np.array_equal(sample.joints[number], np.float32([points for _, points in frame]))
    assert {reader.read(path).joints.shape[1] for path in paths} == {1, 2}


def test_unusual_layout_is_read(tmp_path):
    lines = document([[ID, ID], [ID]])
    plain = NTUReader().read(written(tmp_path, lines))
    variants = {
        "mixed ends": ("\n".join(lines[:20]) + "\n" + "\r\n".join(lines[20:])).encode(),
        "blanks": "\n".join(f" {line.replace(' ', '  ')} " for line in lines).encode(),
        "tabs": "\n".join(line.replace(" ", "\t") for line in lines).encode(),
        "trailing blank lines": ("\r\n".join(lines) + "\r\n \r\n\r\n\n").encode(),
        "no last line end": "\n".join(lines).encode(),
        "NaN outside the coordinates": "\n".join(lines).replace("0.0276", "NaN").replace("-0.0575", "-1.#IND").encode(),
    }
    for what, data in variants.items():
        sample = NTUReader().read(written(tmp_path, data))
        assert np.array_equal(sample.joints, plain.joints), what
        assert np.array_equal(sample.body_ids, plain.body_ids), what


def test_odd_tracking_numbers_stay_apart(tmp_path):
    ids = [-1, 2**63, 2**64 - 1, 0, 10**30, 2**63 - 1]
    sample = NTUReader().read(written(tmp_path, document([ids, ids[::-1]])))
    assert (sample.body_ids >= 0).all() and len(set(sample.body_ids[0])) == len(ids)
    assert np.array_equal(sample.body_ids[0], sample.body_ids[1][::-1])
    assert sample.body_ids[0, 3] == 0 and sample.body_ids[0, 5] == 2**63 - 1
    spelled = [line.replace(f"{ID} ", "7.2057594e+16 ") for line in document([[ID]])]
    assert NTUReader().read(written(tmp_path, spelled)).body_ids.tolist() == [[72057594000000000]]


# Frame 1: lines 2 to 29 (count, body, joints 5 to 29); frame 2, two bodies: 30, then 31 and 58; frame 3: 85.
GOOD = document([[ID], [ID, ID + 1], []])


def edited(line: int, text: str) -> list[str]:
    return [*GOOD[: line - 1], text, *GOOD[line:]]


def with_field(line: int, field: int, text: str) -> list[str]:
    fields = GOOD[line - 1].split()
    fields[field] = text
    return edited(line, " ".join(fields))


@pytest.mark.parametrize(
    ("lines", "line", "expected"),
    [
        (b"", 1, "the number of frames"),
        (b"\xff\xfe1\x00", 1, "not a number"),
        (edited(1, "1000000000"), 1, "1000000000 frames do not fit a file of 85 lines"),
        (edited(1, "9" * 5000), 1, "expected the number of frames"),
        (edited(1, "0"), 1, "0 frames"),
        (edited(1, "-3"), 1, "found '-3'"),
        (edited(1, "+3"), 1, "found '+3'"),
        (edited(30, "+2"), 30, "found '+2'"),
        (edited(32, "+25"), 32, "found '+25'"),
        (with_field(40, 0, "e.5"), 40, "found 'e.5'"),
        (with_field(40, 7, ""), 40, "in 12 fields, found 11"),
        (edited(1, "3.0"), 1, "found '3.0'"),
        (edited(1, "2"), 85, "the 2 frames are over, 1 more lines follow"),
        (edited(1, "4"), 85, "the file ends here, the number of bodies of frame 4 of 4 should follow"),
        (edited(2, "1000000"), 2, "1000000 bodies do not fit a file of 85 lines"),
        (edited(2, "one"), 2, "'one', which is not a number"),
        (edited(30, "3"), 85, "expected a body of frame 2 of 3 in 10 fields, found 1"),
        (edited(30, "1"), 58, "expected the number of bodies of frame 3 of 3 in 1 field, found 10"),
        (edited(85, "1"), 85, "the file ends here"),
        (edited(31, "72057594037930000 0 1"), 31, "in 10 fields, found 3"),
        (with_field(31, 0, "nan"), 31, "expected a tracking id, found 'nan'"),
        (with_field(31, 0, "1e999"), 31, "expected a tracking id, found '1e999'"),
        (with_field(31, 0, "1_0"), 31, "'1_0', which is not a number"),
        (edited(32, "24"), 32, "24 joints, a skeleton of this set has 25"),
        (edited(32, ""), 32, "the number of joints of frame 2 of 3 in 1 field, found 0"),
        (with_field(40, 0, "0.1x"), 40, "joint 8 of 25 of frame 2 of 3, found '0.1x'"),
        (with_field(40, 1, "nan"), 40, "expected a coordinate in metres, found 'nan'"),
        (with_field(40, 2, "-Infinity"), 40, "expected a coordinate in metres, found '-Infinity'"),
        (with_field(40, 2, "1.2.3"), 40, "expected a coordinate in metres, found '1.2.3'"),
        (with_field(40, 2, "--1.5"), 40, "found '--1.5'"),
        (with_field(40, 0, "1e7"), 40, "found '1e7'"),
        (with_field(40, 0, "1e-"), 40, "found '1e-'"),
        (with_field(40, 7, "abc"), 40, "joint 8 of 25 of frame 2 of 3, found 'abc'"),
        (edited(40, "0.1 0.2 0.3 4"), 40, "in 12 fields, found 4"),
        (edited(40, GOOD[39] + " 1"), 40, "in 12 fields, found 13"),
        ([*GOOD[:39], GOOD[39] + " 1", GOOD[40].rsplit(" ", 1)[0], *GOOD[41:]], 40, "found 13"),
        ([*GOOD[:39], *GOOD[40:]], 57, "joint 25 of 25 of frame 2 of 3 in 12 fields, found 10"),
        ([*GOOD[:39], "", *GOOD[39:]], 40, "in 12 fields, found 0"),
        (GOOD[:50], 50, "the file ends here, joint 19 of 25 of frame 2 of 3 should follow"),
        ([*GOOD[:50], GOOD[50][:30]], 51, "joint 19 of 25 of frame 2 of 3 in 12 fields, found"),
        ([*GOOD, "0", "0"], 86, "2 more lines follow"),
        (["2", "0", "0"], None, "no body in any of its 2 frames"),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_damage_is_named_with_its_line(tmp_path, lines, line, expected, newline):
    error = refused(written(tmp_path, lines, newline=newline))
    assert error.line == line
    assert expected in error.reason
    assert f":{line}:" in str(error) or line is None
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_every_cut_is_refused_where_the_file_ends(tmp_path):
    data = "\n".join(GOOD).encode()
    whole = NTUReader().read(written(tmp_path, data))
    for length in range(0, data.rindex(b"\n") + 1, 31):
        error = refused(written(tmp_path, data[:length]))
        last = len(data[:length].rstrip().split(b"\n"))
        # A file of less than four lines cannot hold the three frames of line 1.
        assert error.line == (last if last > 3 else 1)
    assert np.array_equal(NTUReader().read(written(tmp_path, data + b"\n")).joints, whole.joints)


def test_random_damage_never_ends_in_another_error(tmp_path):
    rng = np.random.default_rng(5)
    data = "\r\n".join(GOOD).encode()
    refusals = 0
    for _ in range(300):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), size=rng.integers(1, 4)):
            damaged[place] = rng.integers(0, 256)
        path = written(tmp_path, bytes(damaged))
        try:
            sample = NTUReader().read(path)
            assert np.isfinite(sample.joints).all()
            careful = parse_carefully(path, bytes(damaged))  # what one pass lets through, so does the other
            assert np.array_equal(sample.joints[sample.body_ids >= 0], np.float32(careful.coordinates))
        except MalformedFile as error:
            refusals += 1
            assert error.line is not None and 1 <= error.line <= len(damaged.split(b"\n"))
    assert refusals > 100


def test_large_claims_allocate_nothing_large(tmp_path):
    # 400,000 empty frames and one of 300 bodies would make an array of 36 GB out of 1.5 MB of text.
    body = "\n".join(document([[ID]])[2:])
    text = "\n".join(["400001", *["0"] * 400_000, "300", *[body] * 300]) + "\n"
    path = written(tmp_path, text.encode())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "400001 frames of 300 bodies take more than" in refused(path).reason
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KB
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert "1099511627776 bytes" in refused(path).reason


@pytest.mark.parametrize(
    "name",
    ["S001C002P003R002A000", "S001C002P000R002A001", "S01C002P003R002A013", "S001C002P003R002A013_x", "walk",
     "s001c002p003r002a013", "S001C002P003R002A０13"],
)  # fmt: skip
def test_misnamed(tmp_path, name):
    error = refused(written(tmp_path, GOOD, f"{name}.skeleton"))
    assert "is not named" in error.reason and error.line is None


def test_actions_beyond_the_set(tmp_path):
    path = written(tmp_path, GOOD, "S018C001P041R001A061.skeleton")
    assert "action 61, this set has 60" in refused(path).reason
    assert NTUReader(actions=120).read(path).label == 60


def test_what_is_no_file_of_the_folder(tmp_path):
    raw, outside = tmp_path / "raw", tmp_path / "outside"
    raw.mkdir()
    outside.mkdir()
    target = written(outside, GOOD)
    link = raw / NAME
    link.symlink_to(target)
    assert "leaves the raw folder" in refused(link).reason
    inside = written(raw, GOOD, "S001C001P001R001A001.skeleton")
    link.unlink()
    link.symlink_to(inside)
    assert NTUReader().read(link).label == 12
    link.unlink()
    link.symlink_to(link)
    assert "cannot be read" in refused(link).reason
    link.unlink()
    assert "cannot be read" in refused(link).reason
    link.mkdir()
    assert "not a regular file" in refused(link).reason
    link.rmdir()
    os.mkfifo(link)
    assert "not a regular file" in refused(link).reason
    alias = tmp_path / "alias"
    alias.symlink_to(raw)
    assert NTUReader().read(alias / inside.name).label == 0


def test_files_are_sorted(tmp_path):
    names = ["S002C001P003R001A001", "S001C002P005R002A008", "S001C001P001R001A001"]
    paths = [written(tmp_path, GOOD, f"{name}.skeleton") for name in names]
    written(tmp_path, GOOD, "notes.txt")
    assert NTUReader().files(tmp_path) == paths[::-1]


def test_folders_without_recordings(tmp_path):
    with pytest.raises(InputError, match="found nothing of that name"):
        NTUReader().files(tmp_path / "absent")
    with pytest.raises(InputError, match="found an empty folder"):
        NTUReader().files(tmp_path)
    (tmp_path / "nturgb+d_skeletons").mkdir()
    with pytest.raises(InputError, match=r"found 1 other entries, first \['nturgb\+d_skeletons'\]"):
        NTUReader().files(tmp_path)
    with pytest.raises(InputError, match="found a file"):
        NTUReader().files(written(tmp_path, GOOD))

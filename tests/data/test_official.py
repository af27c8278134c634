"""Official sets, on small synthetic files in the official layouts: same code, other checksums, no network."""

import gzip
import hashlib
import io
import json
import shutil
import socket
import struct
import sys
import tarfile
import urllib.error

import numpy as np
import pytest

from jaxinvert import data
from jaxinvert.data import archives, official
from jaxinvert.data.tfds import import_tfds

FASHION_FILES = {
    "train-images-idx3-ubyte.gz": (6, 28, 28),
    "train-labels-idx1-ubyte.gz": (6,),
    "t10k-images-idx3-ubyte.gz": (4, 28, 28),
    "t10k-labels-idx1-ubyte.gz": (4,),
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a test reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(official.urllib.request, "urlopen", refuse)


def write_tar(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def cifar_files(layout, records_per_file, rng):
    """Random records in the official layout: (members of the archive, images and labels by file)."""
    members, truth = {}, {}
    class_names = {"batches.meta.txt": 10, "coarse_label_names.txt": 20, "fine_label_names.txt": 100}
    for name in layout.label_files:
        names = "".join(f"name{i}\n" for i in range(class_names[name]))
        members[f"{layout.folder}/{name}"] = names.encode() + b"\n"
    for name in layout.train_files + layout.test_files:
        images = rng.integers(0, 256, (records_per_file, 32, 32, 3), dtype=np.uint8)
        labels = rng.integers(0, 10, (records_per_file, len(layout.label_keys)), dtype=np.uint8)
        planes = images.transpose(0, 3, 1, 2).reshape(records_per_file, -1)
        members[f"{layout.folder}/{name}"] = np.concatenate([labels, planes], axis=1).tobytes()
        truth[name] = (images, labels)
    return members, truth


def idx_bytes(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def register(monkeypatch, name, folder):
    """Makes the files in `folder` the official ones of `name`."""
    builder = official.builder_class(name)
    url_info = import_tfds().core.download.checksums.UrlInfo
    infos = {}
    for url, info in builder.url_infos.items():
        content = (folder / info.filename).read_bytes()
        checksum = hashlib.sha256(content).hexdigest()
        infos[url] = url_info(size=len(content), checksum=checksum, filename=info.filename)
    monkeypatch.setattr(builder, "url_infos", infos)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_from_a_folder(name, tmp_path, monkeypatch):
    layout = archives.CIFAR_LAYOUTS[name]
    members, truth = cifar_files(layout, 3, np.random.default_rng(0))
    source = tmp_path / "downloads"
    source.mkdir()
    write_tar(source / f"{name[:5]}-{name[5:]}-binary.tar.gz", members)
    register(monkeypatch, name, source)

    prepared = data.prepare(name, source=source, data_dir=tmp_path / "sets")
    assert prepared == tmp_path / "sets" / name / "3.0.2"
    for split, files in (("train", layout.train_files), ("test", layout.test_files)):
        loaded = data.load(name, split=split, data_dir=tmp_path / "sets")
        images = np.concatenate([truth[file][0] for file in files])
        labels = np.concatenate([truth[file][1] for file in files])[:, -1]  # CIFAR-100: the fine label is second
        # TFDS shuffles, so compare as sets of (image, label).
        expected = {(image.tobytes(), int(label)) for image, label in zip(images, labels)}
        raw = np.round(loaded.images * 255).astype(np.uint8)
        assert {(image.tobytes(), int(label)) for image, label in zip(raw, loaded.labels)} == expected
        assert len(raw) == len(expected)
    assert loaded.num_classes == int(name[5:])
    assert loaded.class_names[3] == "name3"
    assert data.prepare(name, data_dir=tmp_path / "sets") == prepared  # done before: no network, no work
    assert not list(source.glob("*.bin"))  # nothing was unpacked


def test_idx_sets_from_a_folder_and_the_default_data_dir(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    arrays = {}
    for file, shape in FASHION_FILES.items():
        arrays[file] = rng.integers(0, 10, shape, dtype=np.uint8)
        (tmp_path / file).write_bytes(gzip.compress(idx_bytes(arrays[file])))
    register(monkeypatch, "mnist", tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "sets"))
    data.prepare("mnist", source=tmp_path)
    mnist = data.load("mnist", split="train", size=32)
    assert mnist.images.shape == (6, 32, 32, 1)
    assert sorted(mnist.labels) == sorted(arrays["train-labels-idx1-ubyte.gz"])
    assert (mnist.mean, mnist.std) == ((0.1307,), (0.3081,))
    assert len(data.load("mnist", split="test[:50%]").images) == 2


def test_debian_copies_of_fashion_mnist_are_accepted(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    debian, upstream = tmp_path / "debian", tmp_path / "upstream"
    debian.mkdir()
    upstream.mkdir()
    for file, shape in FASHION_FILES.items():
        stripped = gzip.compress(idx_bytes(rng.integers(0, 10, shape, dtype=np.uint8)), mtime=0)
        (debian / file).write_bytes(stripped)
        # What `gzip` wrote in the first place: flag 8, the upload's time, the name, the same stream.
        mtime = 1504176606 if file.startswith("train") else 1504176627
        header = b"\x1f\x8b\x08\x08" + struct.pack("<I", mtime) + b"\x00\x03" + file[:-3].encode() + b"\x00"
        (upstream / file).write_bytes(header + stripped[10:])
        assert gzip.decompress(header + stripped[10:]) == gzip.decompress(stripped)
    register(monkeypatch, "fashion_mnist", upstream)
    # One file is an untouched original: the two kinds may be mixed.
    (debian / "t10k-labels-idx1-ubyte.gz").write_bytes((upstream / "t10k-labels-idx1-ubyte.gz").read_bytes())
    data.prepare("fashion_mnist", source=debian, data_dir=tmp_path / "sets")
    assert data.load("fashion_mnist", data_dir=tmp_path / "sets").images.shape == (4, 28, 28, 1)


def test_official_checksum_is_verified(tmp_path):
    for file in FASHION_FILES:
        (tmp_path / file).write_bytes(gzip.compress(b"not the official file"))
    for name in ("mnist", "fashion_mnist"):
        with pytest.raises(ValueError, match=r"idx3-ubyte.gz is not the official file: its SHA-256 differs"):
            data.prepare(name, source=tmp_path, data_dir=tmp_path / "sets")
    assert not (tmp_path / "sets" / "mnist" / "3.0.1").exists()


def test_official_checksums_are_tfds_own():
    tfds = import_tfds()
    for name in data.names()[1:]:
        assert official.builder_class(name).url_infos == tfds.builder_cls(name).url_infos
        assert tfds.builder_cls(name) is not official.builder_class(name)  # the registry is untouched


def test_source_without_the_files_lists_them(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lacks cifar-10-binary.tar.gz; for cifar10 it must hold"):
        data.prepare("cifar10", source=tmp_path, data_dir=tmp_path)


def test_unprepared_set_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"\n    jaxinvert data prepare cifar10\n"):
        data.load("cifar10")
    with pytest.raises(
        FileNotFoundError, match=r"TFDS_DATA_DIR=\S+/elsewhere jaxinvert data prepare mnist --from DIR"
    ):
        data.load("mnist", data_dir=tmp_path / "elsewhere")


def test_tfrecord_sets_are_refused(tmp_path):
    # What TensorFlow's own preparation leaves: `data_source` cannot read it.
    folder = tmp_path / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    for file in (official.PHOTOS_DIR / "32").iterdir():
        (folder / file.name).write_bytes(file.read_bytes().replace(b'"array_record"', b'"tfrecord"'))
    with pytest.raises(ValueError, match="prepared as tfrecord, not as array_record"):
        data.load("cifar10", data_dir=tmp_path)


EVIL_TEXT = {"pythonClassName": "evil.X", "text": {}}


@pytest.fixture
def prepared(tmp_path):
    """A prepared set: the embedded photos under an official name."""
    folder = tmp_path / "cifar10" / "3.0.2"
    shutil.copytree(official.PHOTOS_DIR / "32", folder)
    return folder


@pytest.mark.parametrize(
    "evil",
    [
        EVIL_TEXT,
        {"python_class_name": "evil.X", "text": {}},
        {"type": "evil.X", "content": {}},
        {"type": "evil.X", "pythonClassName": "tensorflow_datasets.core.features.text_feature.Text", "text": {}},
        {"pythonClassName": "evil.X", "jsonFeature": {"json": "{}"}},
        {"pythonClassName": "evil.X", "sequence": {"feature": EVIL_TEXT}},
        {
            "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
            "featuresDict": {"features": {"inner": EVIL_TEXT}},
        },
        [EVIL_TEXT],
        "evil.X",
    ],
)
def test_a_prepared_set_imports_nothing_that_it_names(evil, prepared, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("raise SystemExit('it was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    file = prepared / "features.json"
    features = json.loads(file.read_text())
    assert data.load("cifar10", data_dir=tmp_path).images.shape == (10, 32, 32, 3)
    whole = features | {"featuresDict": {"features": features["featuresDict"]["features"] | {"id": evil}}}
    for content in (whole, evil):
        file.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"cannot read the prepared set .*features\.json"):
            data.load("cifar10", data_dir=tmp_path)
    assert "evil" not in sys.modules


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("features.json", b"{", b"[" * 5000, "nested deeper|cannot read .*features.json"),
        ("features.json", b'"10"', b'"2000000000"', "2000000000 classes|cannot read the prepared set"),
        ("features.json", b'"10"', b'"3"', "labels from 0 to 9 of 3 classes|cannot read the prepared set"),
        ("dataset_info.json", b'"10"', b'"1000000000000"', "cannot read the prepared set"),
        ("dataset_info.json", b'"shardLengths"', b'"unknown"', "cannot read the prepared set"),
        ("dataset_info.json", b"{", b"", "cannot read"),
        ("photos-test.array_record-00000-of-00001", b"PNG", b"GNP", "cannot read the prepared set"),
    ],
)
def test_a_damaged_prepared_set_is_one_clear_error(file, old, new, message, prepared, tmp_path):
    content = (prepared / file).read_bytes()
    assert old in content
    (prepared / file).write_bytes(content.replace(old, new))
    with pytest.raises(ValueError, match=message):
        data.load("cifar10", data_dir=tmp_path)


def test_images_beyond_the_limit_are_refused(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxinvert.data.prepared.MAX_BYTES", 5 * 10 * 32 * 32 * 3 - 1)
    with pytest.raises(ValueError, match=r"holds 10 images of which one is \(32, 32, 3\): too large"):
        data.load("cifar10", data_dir=tmp_path)
    assert len(data.load("cifar10", split="test[:9]", data_dir=tmp_path).images) == 9


def test_special_files_in_a_prepared_set_are_refused(prepared, tmp_path):
    (prepared / "label.labels.txt").unlink()
    (prepared / "label.labels.txt").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=r"label\.labels\.txt is not a regular file"):
        data.load("cifar10", data_dir=tmp_path)


def test_no_network_is_told_at_once(tmp_path, monkeypatch):
    def unreachable(request, timeout):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(official.urllib.request, "urlopen", unreachable)
    with pytest.raises(
        ConnectionError, match=r"cifar-100-binary.tar.gz\nand run: jaxinvert data prepare cifar100 --from"
    ):
        data.prepare("cifar100", data_dir=tmp_path)


def test_only_official_sets_are_prepared():
    assert (data.prepare("photos") / "LICENSES").is_file()
    with pytest.raises(ValueError, match="name='imagenet' cannot be prepared, expected one of cifar10"):
        data.prepare("imagenet")


LAYOUT = archives.CIFAR_LAYOUTS["cifar10"]


@pytest.fixture
def members():
    return cifar_files(LAYOUT, 2, np.random.default_rng(0))[0]


def test_truncated_archive(tmp_path, members):
    path = tmp_path / "cifar.tar.gz"
    write_tar(path, members)
    whole = path.read_bytes()
    for length in (0, 5, len(whole) // 2, len(whole) - 12):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cifar\.tar\.gz is corrupt or truncated"):
            archives.read_cifar(path, LAYOUT)


def test_corrupt_archive(tmp_path, members):
    path = tmp_path / "cifar.tar.gz"
    write_tar(path, members)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"cifar\.tar\.gz"):
        archives.read_cifar(path, LAYOUT)


def test_hostile_members_are_ignored(tmp_path, members):
    path = tmp_path / "cifar.tar.gz"
    link_name = f"{LAYOUT.folder}/test_batch.bin"
    del members[link_name]
    members["../evil.bin"] = b"x"
    members["/tmp/evil.bin"] = b"x"
    write_tar(path, members)
    plain = tmp_path / "linked.tar.gz"
    with tarfile.open(path) as source, tarfile.open(plain, "w:gz") as target:
        for member in source:
            target.addfile(member, source.extractfile(member))
        link = tarfile.TarInfo(link_name)
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        target.addfile(link)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"lacks cifar-10-batches-bin/test_batch\.bin"):
        archives.read_cifar(plain, LAYOUT)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("test_batch.bin", b"\x00" * 3072, "test_batch.bin has 3,072 bytes, not a multiple of 3,073"),
        ("test_batch.bin", b"", "has 0 bytes"),
        ("test_batch.bin", b"\x0a" + b"\x00" * 3072, "a label of 10, but 10 class names"),
    ],
)
def test_malformed_records(tmp_path, members, name, content, message):
    members[f"{LAYOUT.folder}/{name}"] = content
    write_tar(tmp_path / "cifar.tar.gz", members)
    with pytest.raises(ValueError, match=message):
        archives.read_cifar(tmp_path / "cifar.tar.gz", LAYOUT)


def test_idx_round_trip_and_damage(tmp_path):
    path = tmp_path / "labels.gz"
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    path.write_bytes(gzip.compress(idx_bytes(values)))
    np.testing.assert_array_equal(archives.read_idx(path), values)
    for content, message in (
        (path.read_bytes()[:-9], "corrupt or truncated"),
        (b"not gzip at all", "corrupt or truncated"),
        (gzip.compress(idx_bytes(values)[:-1]), r"corrupt or truncated: 23 values"),
        (gzip.compress(b""), "not an IDX file"),
        (gzip.compress(b"\x00\x00\x0d\x01" + b"\x00" * 8), "not an IDX file"),
        (gzip.compress(struct.pack(">BBBBIII", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 4) + b"x"), "1 values"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            archives.read_idx(path)


def test_idx_files_must_agree(tmp_path):
    for name, shape in (("images.gz", (3, 28, 28)), ("labels.gz", (2,))):
        (tmp_path / name).write_bytes(gzip.compress(idx_bytes(np.zeros(shape, np.uint8))))
    with pytest.raises(ValueError, match=r"\(3, 28, 28\) images and \(2,\) labels"):
        next(official.idx_examples(tmp_path / "images.gz", tmp_path / "labels.gz"))


def test_gzip_header_of_another_kind_is_left_alone():
    with pytest.raises(ValueError, match="bare header"):
        archives.restore_gzip_header(b"\x1f\x8b\x08\x08" + b"\x00" * 20, stem="name", mtime=0)
